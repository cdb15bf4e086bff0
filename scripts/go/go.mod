// The Go that scripts/go.sh installs where there is none that is new enough. Go publishes its own distribution as this module.
module lcl.dev/scripts/go

go 1.18

require golang.org/toolchain v0.0.1-go1.26.8.linux-amd64
