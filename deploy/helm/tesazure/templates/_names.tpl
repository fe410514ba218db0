{{/* What everything is called. */}}
{{- define "tesazure.name" -}}
{{- $name := .Release.Name -}}
{{- if not (contains "tesazure" $name) -}}{{- $name = printf "%s-tesazure" $name -}}{{- end -}}
{{- $name | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{/* What the server's pods are found by; never changes within a release. */}}
{{- define "tesazure.selector" -}}
app.kubernetes.io/name: tesazure
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "tesazure.labels" -}}
{{ include "tesazure.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "tesazure.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}{{- else -}}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{- end -}}
{{- end -}}
{{- end }}

{{/* A setting as the environment has it: numbers as they are written, not 1.6777216e+07. */}}
{{- define "tesazure.setting" -}}
{{- if kindIs "string" . }}{{ . | quote }}{{ else }}{{ toJson . | quote }}{{ end -}}
{{- end }}
