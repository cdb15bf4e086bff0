//! What a volume's answers mean, and what a volume that lacks something is given instead.
//!
//! Comes in: errors of system calls on files. Goes out: whether to wait, to go another way, or to give up; folders and files that are as durable
//! as the volume can make them. Knows nothing of checkpoints.

use std::{
    error::Error,
    fmt,
    fs::{self, File},
    future::Future,
    io,
    path::{Path, PathBuf},
    sync::{Once, OnceLock},
    thread,
    time::Duration,
};

use nix::libc;

/// Wait before the second attempt: longer than a call that was cut off needs, short against a checkpoint. Every further pause is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(125);

/// How long a volume that does not answer is waited for: a network file system's fail-over takes seconds to tens of seconds, and what lasts
/// longer wants a person's eyes. The tenth pause, of 32 s, ends just before.
const PATIENCE: Duration = Duration::from_secs(64);

/// Seconds instead of [`PATIENCE`].
const PATIENCE_VARIABLE: &str = "LCL_VOLUME_PATIENCE";

/// Where the system lists what is mounted.
const MOUNTS: &str = "/proc/self/mountinfo";

/// What is the matter with a volume, as far as an error tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeFault {
    /// It does not answer, and may come back.
    Away,
    /// It has no room.
    Full,
    /// It takes no writes, or none of this user.
    Forbidden,
    /// It cannot do what was asked of it, and never will.
    Unsupported,
    /// The error says nothing about the volume.
    Other,
}

impl VolumeFault {
    /// What an error of the system says, or one that has such an error among its causes.
    #[must_use]
    pub fn of(error: &(dyn Error + 'static)) -> Self {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<io::Error>() {
                let fault = error.raw_os_error().map_or_else(|| Self::of_kind(error.kind()), Self::of_number);
                if fault != Self::Other {
                    return fault;
                }
            }
            cause = error.source();
        }
        Self::Other
    }

    /// Who wraps an error of the system often keeps its kind alone.
    fn of_kind(kind: io::ErrorKind) -> Self {
        use io::ErrorKind as Kind;
        match kind {
            Kind::StaleNetworkFileHandle
            | Kind::TimedOut
            | Kind::NotConnected
            | Kind::HostUnreachable
            | Kind::NetworkUnreachable
            | Kind::NetworkDown
            | Kind::ConnectionAborted
            | Kind::ConnectionRefused
            | Kind::ConnectionReset
            | Kind::WouldBlock => Self::Away,
            Kind::StorageFull | Kind::QuotaExceeded | Kind::FileTooLarge => Self::Full,
            Kind::ReadOnlyFilesystem | Kind::PermissionDenied => Self::Forbidden,
            Kind::Unsupported => Self::Unsupported,
            _ => Self::Other,
        }
    }

    fn of_number(number: i32) -> Self {
        match number {
            libc::EIO
            | libc::ESTALE
            | libc::ENOTCONN
            | libc::ESHUTDOWN
            | libc::ETIMEDOUT
            | libc::EHOSTDOWN
            | libc::EHOSTUNREACH
            | libc::ENETDOWN
            | libc::ENETUNREACH
            | libc::ECONNABORTED
            | libc::ECONNREFUSED
            | libc::ECONNRESET
            | libc::ENODEV
            | libc::ENXIO
            | libc::EREMOTEIO
            | libc::EAGAIN => Self::Away,
            libc::ENOSPC | libc::EDQUOT | libc::EFBIG => Self::Full,
            libc::EROFS | libc::EACCES | libc::EPERM => Self::Forbidden,
            libc::ENOSYS | libc::EOPNOTSUPP | libc::EINVAL | libc::ENOLCK => Self::Unsupported,
            _ => Self::Other,
        }
    }

    /// Whether starting again on the same volume would fail again until somebody changes it.
    #[must_use]
    pub fn is_permanent(self) -> bool {
        matches!(self, Self::Forbidden | Self::Unsupported)
    }

    /// What to do about it, to stand after a colon.
    #[must_use]
    pub(crate) fn advice(self) -> &'static str {
        match self {
            Self::Away => "it does not answer, try again when it does",
            Self::Full => "make room, or have fewer checkpoints kept",
            Self::Forbidden => "mount it writable for this user, or name another spec.checkpoint.uri",
            Self::Unsupported => {
                "use a volume that can, or the bucket itself (spec.checkpoint.uri of s3://, gs:// or az://) where it is one mounted as a folder"
            }
            Self::Other => "a run needs it",
        }
    }
}

/// The volume that a path lies on, for messages: where it is mounted, its kind and what it is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    mounted_at: PathBuf,
    about: Option<String>,
}

impl Volume {
    /// The volume of a path that need not exist.
    #[must_use]
    pub fn of(path: &Path) -> Self {
        let mounts = fs::read_to_string(MOUNTS).unwrap_or_default();
        Self::among(&mounts, path).unwrap_or_else(|| Self { mounted_at: path.to_owned(), about: None })
    }

    /// `mounts`: lines of `mountinfo`, see `man 5 proc`. Of two that cover the path the deeper one counts, and of equals the later.
    fn among(mounts: &str, path: &Path) -> Option<Self> {
        let parse = |line: &str| {
            let (place, about) = line.split_once(" - ")?;
            let mounted_at = PathBuf::from(unescape(place.split(' ').nth(4)?));
            let mut about = about.split(' ');
            let (kind, source) = (about.next()?, unescape(about.next()?));
            path.starts_with(&mounted_at).then(|| Self { mounted_at, about: Some(format!("{kind}, {source}")) })
        };
        mounts.lines().filter_map(parse).max_by_key(|volume| volume.mounted_at.as_os_str().len())
    }
}

impl fmt::Display for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.mounted_at.display())?;
        self.about.as_ref().map_or(Ok(()), |about| write!(f, " ({about})"))
    }
}

/// Spaces, tabs, line ends and backslashes stand there as three octal digits.
fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |text, (code, character)| text.replace(code, character))
}

/// Does `operation` until it succeeds, fails with something else than a volume that is away, or that has been so for about a minute
/// (`LCL_VOLUME_PATIENCE`, in seconds). Blocks.
pub fn while_away<T, E: Error + 'static>(mut operation: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let mut pauses = Pauses::default();
    loop {
        match operation() {
            Err(error) => match pauses.after(&error) {
                Some(pause) => thread::sleep(pause),
                None => return Err(error),
            },
            done => return done,
        }
    }
}

/// The same without blocking.
pub(crate) async fn while_away_async<T, E, F>(mut operation: impl FnMut() -> F) -> Result<T, E>
where
    E: Error + 'static,
    F: Future<Output = Result<T, E>>,
{
    let mut pauses = Pauses::default();
    loop {
        match operation().await {
            Err(error) => match pauses.after(&error) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(error),
            },
            done => return done,
        }
    }
}

/// Those of one operation.
#[derive(Debug, Default)]
struct Pauses {
    number: u32,
    waited: Duration,
}

impl Pauses {
    /// How long to wait after an error; `None`: not at all, it is the operation's result.
    fn after(&mut self, error: &(dyn Error + 'static)) -> Option<Duration> {
        let pause = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(self.number));
        self.waited = self.waited.saturating_add(pause);
        if VolumeFault::of(error) != VolumeFault::Away || self.waited > patience() {
            return None;
        }
        self.number += 1;
        tracing::warn!(error = %crate::write::describe(error), ?pause, "the volume does not answer; tried again");
        Some(pause)
    }
}

fn patience() -> Duration {
    static SET: OnceLock<Duration> = OnceLock::new();
    *SET.get_or_init(|| {
        let seconds = std::env::var(PATIENCE_VARIABLE).ok().and_then(|seconds| seconds.parse().ok());
        seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).unwrap_or(PATIENCE)
    })
}

/// Has a file's bytes on stable storage, where the volume knows of that.
pub fn sync(file: &File, path: &Path) -> io::Result<()> {
    static ONCE: Once = Once::new();
    match file.sync_all() {
        Err(error) if VolumeFault::of(&error) == VolumeFault::Unsupported => {
            ONCE.call_once(|| {
                tracing::warn!(
                    volume = %Volume::of(path), %error,
                    "this volume does not say when data is on stable storage: a checkpoint may be lost when its machine loses power"
                );
            });
            Ok(())
        }
        other => other,
    }
}

/// Makes changes to a folder's entries durable. Only Unix can sync a folder.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    #[cfg(unix)]
    sync(&File::open(folder)?, folder)?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

/// Creates a folder and all above it, each durable in the one above when `fsync` is asked for.
pub(crate) fn create_folder(path: &Path, fsync: bool) -> io::Result<()> {
    let missing: Vec<&Path> = path.ancestors().take_while(|ancestor| !ancestor.exists()).collect();
    fs::create_dir_all(path)?;
    if fsync {
        for folder in missing.iter().rev() {
            if let Some(above) = folder.parent() {
                sync_folder(above)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_whether_to_wait_to_go_another_way_or_to_give_up() {
        let check = |number: i32, fault: VolumeFault| assert_eq!(VolumeFault::of(&io::Error::from_raw_os_error(number)), fault, "{number}");
        for number in [libc::EIO, libc::ESTALE, libc::ENOTCONN, libc::ETIMEDOUT] {
            check(number, VolumeFault::Away);
        }
        check(libc::ENOSPC, VolumeFault::Full);
        check(libc::EDQUOT, VolumeFault::Full);
        check(libc::EROFS, VolumeFault::Forbidden);
        check(libc::EACCES, VolumeFault::Forbidden);
        for number in [libc::ENOSYS, libc::EOPNOTSUPP, libc::ENOLCK] {
            check(number, VolumeFault::Unsupported);
        }
        check(libc::ENOENT, VolumeFault::Other);
        let inner = object_store::Error::Generic { store: "test", source: Box::new(io::Error::from_raw_os_error(libc::ESTALE)) };
        assert_eq!(VolumeFault::of(&inner), VolumeFault::Away);
        // As the makers of temporary files put it: an error of their own, of the system's kind.
        let own = io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "at path /a");
        assert_eq!(VolumeFault::of(&own), VolumeFault::Forbidden);
        assert_eq!(VolumeFault::of(&fmt::Error), VolumeFault::Other);
    }

    #[test]
    fn the_volume_of_a_path_is_the_deepest_mount_above_it() {
        let mounts = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
                      30 22 0:45 / /mnt/my\\040bucket rw - fuse.gcsfuse my-bucket rw,user_id=0\n\
                      31 22 0:46 / /mnt rw - tmpfs tmpfs rw\n";
        let check = |path: &str, expected: &str| assert_eq!(Volume::among(mounts, Path::new(path)).unwrap().to_string(), expected);
        check("/mnt/my bucket/run", "/mnt/my bucket (fuse.gcsfuse, my-bucket)");
        check("/mnt/my", "/mnt (tmpfs, tmpfs)");
        check("/home/a", "/ (ext4, /dev/sda1)");
        assert_eq!(Volume::among("", Path::new("/a")), None);
    }

    #[test]
    fn a_volume_that_comes_back_is_waited_for_and_any_other_error_is_not() {
        let failing = |number: i32, times: u32| {
            let mut left = times;
            let result = while_away(|| {
                if left == 0 {
                    return Ok(());
                }
                left -= 1;
                Err(io::Error::from_raw_os_error(number))
            });
            (result.is_ok(), times - left)
        };
        assert_eq!(failing(libc::ESTALE, 2), (true, 2));
        assert_eq!(failing(libc::ENOSPC, 2), (false, 1));
        assert_eq!(failing(libc::ENOENT, 1), (false, 1));
        let mut pauses = Pauses::default();
        let gone = io::Error::from_raw_os_error(libc::EIO);
        let all: Vec<Duration> = std::iter::from_fn(|| pauses.after(&gone)).collect();
        assert!(all.len() == 9 && all.iter().sum::<Duration>() < PATIENCE, "{all:?}");
    }
}
