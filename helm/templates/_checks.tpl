{{/*
What no schema can say: values that contradict each other. Each message begins with the value to change.
Text that may be secret is not repeated.
*/}}
{{- define "broker.checks" -}}
{{- $v := .Values -}}
{{- if and (not $v.github.clientId) (not $v.github.appId) -}}
{{- fail "github.clientId: not set. Give the app's Client ID (Iv23…), or github.appId." -}}
{{- end -}}
{{- if and $v.github.clientId $v.github.appId -}}
{{- fail "github.appId: set this or github.clientId, not both." -}}
{{- end -}}
{{- if and (not $v.github.privateKey.existingSecret) (not $v.github.privateKey.value) -}}
{{- fail "github.privateKey.existingSecret: not set. Name a Secret that holds the app's private key." -}}
{{- end -}}
{{- $secrets := dict "github.privateKey" $v.github.privateKey "github.webhookSecret" $v.github.webhookSecret "github.proxyUrl" $v.github.proxyUrl "encryptionKeys" $v.encryptionKeys "adminKey" $v.adminKey -}}
{{- range $name, $secret := $secrets -}}
{{- if and $secret.existingSecret $secret.value -}}
{{- fail (printf "%s.value: set this or %s.existingSecret, not both." $name $name) -}}
{{- end -}}
{{- end -}}
{{- range $name, $ca := dict "github.ca" $v.github.ca "store.ca" $v.store.ca -}}
{{- if and $ca.existingSecret $ca.existingConfigMap -}}
{{- fail (printf "%s.existingConfigMap: set this or %s.existingSecret, not both." $name $name) -}}
{{- end -}}
{{- end -}}
{{- $stores := compact (list $v.store.existingSecret $v.store.url (ternary "valkey" "" $v.valkey.enabled)) -}}
{{- if eq (len $stores) 0 -}}
{{- fail "store.existingSecret: not set. Name a Secret that holds the URL of a Redis; or set store.url, or valkey.enabled." -}}
{{- end -}}
{{- if gt (len $stores) 1 -}}
{{- fail "store: set one of store.existingSecret, store.url and valkey.enabled, not several." -}}
{{- end -}}
{{- if and $v.store.url (not (regexMatch "^(sqlite:///|rediss?(\\+sentinel|\\+cluster)?://)" $v.store.url)) -}}
{{- fail "store.url: must begin with sqlite:///, or redis:// or rediss:// (with +sentinel or +cluster)." -}}
{{- end -}}
{{- if and (or $v.store.ca.existingSecret $v.store.ca.existingConfigMap) $v.store.url (not (contains (printf "ssl_ca_certs=/etc/broker/store-ca/%s" $v.store.ca.key) $v.store.url)) -}}
{{- fail (printf "store.url: does not name the CA of store.ca; add ?ssl_ca_certs=/etc/broker/store-ca/%s to a rediss:// URL." $v.store.ca.key) -}}
{{- end -}}
{{- if include "broker.isSqlite" . -}}
{{- if $v.autoscaling.enabled -}}
{{- fail "autoscaling.enabled: SQLite serves one pod only. Use a Redis for several." -}}
{{- end -}}
{{- if gt (int $v.replicaCount) 1 -}}
{{- fail "replicaCount: must be 1 with SQLite. Use a Redis for several pods." -}}
{{- end -}}
{{- if not $v.persistence.enabled -}}
{{- fail "persistence.enabled: SQLite needs a volume, or every restart loses all API keys." -}}
{{- end -}}
{{- if not (hasPrefix (printf "sqlite:///%s/" (trimSuffix "/" $v.persistence.mountPath)) $v.store.url) -}}
{{- fail (printf "store.url: the file must lie on the volume, such as sqlite:///%s/broker.db." (trimSuffix "/" $v.persistence.mountPath)) -}}
{{- end -}}
{{- if contains ".." $v.store.url -}}
{{- fail "store.url: the file's path must have no '..' in it." -}}
{{- end -}}
{{- else if $v.persistence.enabled -}}
{{- fail "persistence.enabled: is for SQLite (store.url: sqlite:…) only." -}}
{{- end -}}
{{- if $v.valkey.enabled -}}
{{- if and (not $v.valkey.auth.existingSecret) (not $v.valkey.auth.password) -}}
{{- fail "valkey.auth.existingSecret: not set. Name a Secret with password and url, or set valkey.auth.password." -}}
{{- end -}}
{{- if and $v.valkey.auth.existingSecret $v.valkey.auth.password -}}
{{- fail "valkey.auth.password: set this or valkey.auth.existingSecret, not both." -}}
{{- end -}}
{{- if and $v.valkey.auth.password (not (regexMatch "^[A-Za-z0-9]{16,128}$" $v.valkey.auth.password)) -}}
{{- fail "valkey.auth.password: 16 to 128 letters and digits." -}}
{{- end -}}
{{- end -}}
{{- if and $v.autoscaling.enabled (gt (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas)) -}}
{{- fail "autoscaling.minReplicas: must not be above autoscaling.maxReplicas." -}}
{{- end -}}
{{- if and $v.autoscaling.enabled (not $v.autoscaling.targetCPUUtilizationPercentage) (not $v.autoscaling.targetMemoryUtilizationPercentage) -}}
{{- fail "autoscaling.targetCPUUtilizationPercentage: set this or autoscaling.targetMemoryUtilizationPercentage." -}}
{{- end -}}
{{- if and $v.ingress.enabled (not $v.ingress.host) -}}
{{- fail "ingress.host: not set. Every host would lead to the broker." -}}
{{- end -}}
{{- if $v.ingress.admin.enabled -}}
{{- if not $v.ingress.admin.host -}}
{{- fail "ingress.admin.host: not set." -}}
{{- end -}}
{{- if eq $v.ingress.admin.host $v.ingress.host -}}
{{- fail "ingress.admin.host: must be another host than ingress.host." -}}
{{- end -}}
{{- end -}}
{{- range $v.ingress.paths -}}
{{- if or (eq .path "/") (eq .path "/v1") (eq .path "/v1/") (hasPrefix "/v1/admin" .path) -}}
{{- fail (printf "ingress.paths: %s would lay open the admin API; use ingress.admin with a host of its own." .path) -}}
{{- end -}}
{{- end -}}
{{- if and $v.metrics.enabled (eq (int $v.metrics.port) (int $v.settings.port)) -}}
{{- fail "metrics.port: must not be settings.port." -}}
{{- end -}}
{{- if and $v.metrics.serviceMonitor.enabled (not $v.metrics.enabled) -}}
{{- fail "metrics.enabled: metrics.serviceMonitor.enabled needs it." -}}
{{- end -}}
{{- if le (sub (int $v.terminationGracePeriodSeconds) (int $v.preStopSleepSeconds)) 30 -}}
{{- fail "terminationGracePeriodSeconds: must leave more than 30 seconds after preStopSleepSeconds." -}}
{{- end -}}
{{- range $map := list "commonLabels" "podLabels" -}}
{{- range $label, $_ := get $v $map -}}
{{- if or (hasPrefix "app.kubernetes.io/" $label) (hasPrefix "helm.sh/" $label) -}}
{{- fail (printf "%s: %s is set by the chart; its selectors need it." $map $label) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
