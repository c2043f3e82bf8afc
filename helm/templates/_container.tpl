{{/*
What is mounted under /etc/broker: name of the folder, Secret or ConfigMap, its keys, and the variable that names the
files. A list in YAML.
*/}}
{{- define "broker.files" -}}
{{- $v := .Values -}}
{{- $made := include "broker.fullname" . -}}
{{- with $v.github.privateKey }}
- name: github-private-key
  env: BROKER_GITHUB_PRIVATE_KEY_FILE
  secret: {{ default $made .existingSecret }}
  keys: {{ ternary .keys (list "github-private-key") (not (empty .existingSecret)) | toJson }}
{{- end }}
{{- with $v.store }}
{{- if .existingSecret }}
- {name: store-url, env: BROKER_STORE_URL_FILE, secret: {{ .existingSecret }}, keys: [{{ .key }}]}
{{- else if .url }}
- {name: store-url, env: BROKER_STORE_URL_FILE, secret: {{ $made }}, keys: [store-url]}
{{- else }}
- {name: store-url, env: BROKER_STORE_URL_FILE, secret: {{ default (include "broker.valkey.fullname" $) $v.valkey.auth.existingSecret }}, keys: [url]}
{{- end }}
{{- end }}
{{- $secrets := dict "github-webhook-secret" $v.github.webhookSecret "proxy-url" $v.github.proxyUrl "encryption-keys" $v.encryptionKeys "admin-key" $v.adminKey }}
{{- range $name, $secret := $secrets }}
{{- $env := printf "BROKER_%s_FILE" ($name | snakecase | upper) }}
{{- if $secret.existingSecret }}
- {name: {{ $name }}, env: {{ $env }}, secret: {{ $secret.existingSecret }}, keys: [{{ $secret.key }}]}
{{- else if $secret.value }}
- {name: {{ $name }}, env: {{ $env }}, secret: {{ $made }}, keys: [{{ $name }}]}
{{- end }}
{{- end }}
{{- range $name, $ca := dict "github-ca" $v.github.ca "store-ca" $v.store.ca }}
{{- $env := ternary "BROKER_GITHUB_CA_FILE" "" (eq $name "github-ca") }}
{{- if $ca.existingSecret }}
- {name: {{ $name }}, env: {{ $env | quote }}, secret: {{ $ca.existingSecret }}, keys: [{{ $ca.key }}]}
{{- else if $ca.existingConfigMap }}
- {name: {{ $name }}, env: {{ $env | quote }}, configMap: {{ $ca.existingConfigMap }}, keys: [{{ $ca.key }}]}
{{- end }}
{{- end }}
{{- with $v.tls.existingSecret }}
- {name: tls, env: "", secret: {{ . }}, keys: [tls.crt, tls.key]}
{{- end }}
{{- end -}}

{{/* The environment of the broker, a map in YAML: no secret in it, only paths. */}}
{{- define "broker.environment" -}}
{{- $v := .Values -}}
{{- with $v.github.clientId }}
BROKER_GITHUB_CLIENT_ID: {{ . | quote }}
{{- end }}
{{- with $v.github.appId }}
BROKER_GITHUB_APP_ID: {{ int64 . | quote }}
{{- end }}
{{- with $v.github.apiUrl }}
BROKER_GITHUB_API_URL: {{ . | quote }}
{{- end }}
{{- with $v.github.url }}
BROKER_GITHUB_URL: {{ . | quote }}
{{- end }}
{{- range include "broker.files" . | fromYamlArray }}
{{- $file := . }}
{{- if .env }}
{{- $paths := list }}
{{- range .keys }}
{{- $paths = append $paths (printf "/etc/broker/%s/%s" $file.name .) }}
{{- end }}
{{ .env }}: {{ join "," $paths | quote }}
{{- end }}
{{- end }}
{{- if $v.tls.existingSecret }}
BROKER_TLS_CERT_FILE: /etc/broker/tls/tls.crt
BROKER_TLS_KEY_FILE: /etc/broker/tls/tls.key
{{- end }}
{{- if $v.metrics.enabled }}
BROKER_METRICS_PORT: {{ int $v.metrics.port | quote }}
{{- end }}
{{- range $name, $value := $v.settings }}
{{- if not (or (kindIs "invalid" $value) (eq (toString $value) "") (eq (toString $value) "[]")) }}
{{- $text := toString $value }}
{{- if kindIs "slice" $value }}
{{- $text = join "," $value }}
{{- else if kindIs "float64" $value }}
{{- /* Large whole numbers come as 1e+06. */}}
{{- $text = ternary (toString (int64 $value)) $text (eq (floor $value) $value) }}
{{- end }}
BROKER_{{ $name | snakecase | upper }}: {{ $text | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "broker.env" -}}
{{- $environment := include "broker.environment" . | fromYaml -}}
{{- range $name, $value := $environment }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- range .Values.extraEnv }}
{{- if hasKey $environment .name }}
{{- fail (printf "extraEnv: %s is already set by another value of this chart." .name) }}
{{- end }}
- {{ toYaml . | nindent 2 | trim }}
{{- end }}
{{- end -}}
