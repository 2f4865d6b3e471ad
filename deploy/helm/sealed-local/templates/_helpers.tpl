{{- define "sealed-local.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride }}
{{- else if contains "sealed-local" .Release.Name -}}
{{ .Release.Name | trunc 30 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-sealed-local" (.Release.Name | trunc 17 | trimSuffix "-") }}
{{- end -}}
{{- end -}}

{{- /* What selects a component's pods; it may never change. Called with (dict "root" $ "component" NAME). */ -}}
{{- define "sealed-local.selector" -}}
app.kubernetes.io/name: sealed-local
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "sealed-local.labels" -}}
{{ include "sealed-local.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
{{- end -}}

{{- /* Called with (dict "root" $ "image" .Values.images.X). */ -}}
{{- define "sealed-local.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- /* Sidecars are root, because only root may use the driver's socket, and have nothing else of root's. */ -}}
{{- define "sealed-local.sidecarSecurity" -}}
runAsUser: 0
readOnlyRootFilesystem: true
{{- if .Values.node.privilegedSidecars }}
privileged: true
{{- else }}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
{{- end }}
{{- end -}}

{{- /* What a schema can't see. Fails with the place and what to do; writes nothing. */ -}}
{{- define "sealed-local.check" -}}
{{- $names := list -}}
{{- $pools := list -}}
{{- range $index, $pool := .Values.nodePools -}}
  {{- if has $pool.name $names -}}
    {{- fail (printf "nodePools[%d].name: two node pools are called %q" $index $pool.name) -}}
  {{- end -}}
  {{- $names = append $names $pool.name -}}
  {{- if and (gt (len $.Values.nodePools) 1) (not $pool.nodeSelector) -}}
    {{- fail (printf "nodePools[%d].nodeSelector: with several node pools each needs one, and no node may belong to two" $index) -}}
  {{- end -}}
  {{- range $pool.config.pools -}}{{- $pools = append $pools .name -}}{{- end -}}
{{- end -}}
{{- range $name, $class := .Values.storageClasses -}}
  {{- with $class.parameters -}}
    {{- if and .pool $.Values.node.enabled $class.enabled (not (has .pool $pools)) -}}
      {{- fail (printf "storageClasses.%s.parameters.pool: no node pool's config has a pool %q; there are: %s" $name .pool (join ", " ($pools | uniq))) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- if and .Values.node.enabled (not .Values.nodePools) -}}
  {{- fail "nodePools: is empty, so no node would get the driver; name one pool, or set node.enabled to false" -}}
{{- end -}}
{{- if and .Values.broker.enabled .Values.node.enabled (not .Values.broker.besideNodePlugin) -}}
  {{- fail "broker.enabled: the broker holds the keys, and the node plugin's machines must never get them. Install it in a cluster that the tenant trusts, with node.enabled false; for development set broker.besideNodePlugin to true" -}}
{{- end -}}
{{- with .Values.broker -}}
  {{- $onServer := .postgresql.conninfoSecret.name -}}
  {{- if and (gt (int .replicas) 1) (not $onServer) -}}
    {{- fail "broker.replicas: several brokers share a register in PostgreSQL; on a SQLite file there is one. Set broker.postgresql" -}}
  {{- end -}}
  {{- if and .postgresql.keysSecret (not $onServer) -}}
    {{- fail "broker.postgresql.conninfoSecret.name: missing, so broker.postgresql.keysSecret would not be in use" -}}
  {{- end -}}
  {{- if and .backup.schedule (not $onServer) -}}
    {{- fail "broker.backup.schedule: only with broker.postgresql. The volume of a broker on a file is in use by the broker alone; docs/broker.md tells how to back that up" -}}
  {{- end -}}
  {{- if and .backup.schedule (not .backup.existingClaim) -}}
    {{- fail "broker.backup.existingClaim: name the claim that backups are written to" -}}
  {{- end -}}
  {{- if $onServer -}}
    {{- if not .postgresql.keysSecret -}}
      {{- fail "broker.postgresql.keysSecret: name the Secret with the files that `sealed-local broker init` made; every broker of a register has the same keys" -}}
    {{- end -}}
    {{- if .hosts -}}
      {{- fail "broker.hosts: with broker.postgresql the certificate is the one in broker.postgresql.keysSecret; give the names to `sealed-local broker init --host`" -}}
    {{- end -}}
    {{- if and $.Values.networkPolicy.enabled (not .postgresql.to) -}}
      {{- fail "broker.postgresql.to: say where the database is, e.g. [{ipBlock: {cidr: 10.0.0.5/32}}]; the broker may connect to nothing else" -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- end -}}
