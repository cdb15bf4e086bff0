{{- define "lcl-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" }}
{{- end }}

{{/* The prefix of all names: 52 characters leave room for the longest suffix in 63. */}}
{{- define "lcl-operator.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride }}
{{- else if contains (include "lcl-operator.name" .) .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "lcl-operator.name" .) | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "lcl-operator.selector" -}}
app.kubernetes.io/name: {{ include "lcl-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "lcl-operator.labels" -}}
{{ include "lcl-operator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: operator
app.kubernetes.io/part-of: lcl
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "lcl-operator.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "lcl-operator.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/*
The lease by which a leader is elected: of all that look after the same namespaces. The operator computes the same name (src/lease.rs).
*/}}
{{- define "lcl-operator.lease" -}}
lcl-operator
{{- with .Values.watchNamespaces }}-{{ . | uniq | sortAlpha | join "," | sha256sum | trunc 10 }}{{ end }}
{{- end }}

{{/* What templates of pods may do, as the operator's flag has it. */}}
{{- define "lcl-operator.allowed" -}}
{{- $allowed := list }}
{{- range list "HostPath" "HostNamespaces" "Privileged" "Root" "ApiTokens" }}
{{- if index $.Values.security (printf "allow%s" .) }}{{ $allowed = append $allowed . }}{{ end }}
{{- end }}
{{- join "," $allowed }}
{{- end }}

{{/* An image's reference. Takes a dict: root, image; registry and tag have defaults. */}}
{{- define "lcl-operator.image" -}}
{{- $registry := default .root.Values.image.registry .image.registry }}
{{- with $registry }}{{ . }}/{{ end }}{{ .image.repository }}
{{- if .image.digest }}@{{ .image.digest }}{{ else }}:{{ default .root.Chart.AppVersion .image.tag }}{{ end }}
{{- end }}
