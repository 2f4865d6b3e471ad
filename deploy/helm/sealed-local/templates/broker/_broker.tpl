{{- /* Whether the register is in PostgreSQL: not empty when it is. */ -}}
{{- define "sealed-local.brokerOnServer" -}}
{{ .Values.broker.postgresql.conninfoSecret.name }}
{{- end -}}

{{- define "sealed-local.brokerDirectory" -}}
/var/lib/sealed-local/broker
{{- end -}}

{{- /* What makes the broker's pods, whichever object does. */ -}}
{{- define "sealed-local.brokerPod" -}}
{{- $fullname := include "sealed-local.fullname" . }}
{{- $image := include "sealed-local.image" (dict "root" $ "image" .Values.images.broker) }}
{{- $directory := include "sealed-local.brokerDirectory" . }}
{{- $onServer := include "sealed-local.brokerOnServer" . }}
{{- $selector := dict "root" $ "component" "broker" }}
{{- with .Values.broker -}}
metadata:
  labels:
    {{- with .podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- include "sealed-local.selector" $selector | nindent 4 }}
  {{- if or .podAnnotations .policy }}
  annotations:
    {{- with .podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- with .policy }}
    # Another policy restarts the broker.
    sealed-local.csi/policy-digest: {{ sha256sum . }}
    {{- end }}
  {{- end }}
spec:
  {{- include "sealed-local.brokerPodCommon" $ | nindent 2 }}
  {{- if $onServer }}
  # A machine that is away for good must not keep the broker that was there from a place elsewhere.
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: DoNotSchedule
      nodeTaintsPolicy: Honor
      labelSelector:
        matchLabels:
          {{- include "sealed-local.selector" $selector | nindent 10 }}
    - maxSkew: 1
      topologyKey: topology.kubernetes.io/zone
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "sealed-local.selector" $selector | nindent 10 }}
  {{- end }}
  initContainers:
    {{- if $onServer }}
    {{- include "sealed-local.brokerKeysContainer" $ | nindent 4 }}
    {{- else }}
    # Makes what is missing and overwrites nothing; refuses where the database of a broker is lost.
    - name: init
      image: {{ $image }}
      imagePullPolicy: {{ $.Values.images.broker.pullPolicy }}
      args:
        - init
        - {{ $directory }}
        - --host={{ $fullname }}-broker
        - --host={{ $fullname }}-broker.{{ $.Release.Namespace }}.svc
        {{- range .hosts }}
        - --host={{ . }}
        {{- end }}
      {{- include "sealed-local.brokerContainer" $ | nindent 6 }}
    {{- end }}
    {{- if .policy }}
    - name: policy
      image: {{ $image }}
      imagePullPolicy: {{ $.Values.images.broker.pullPolicy }}
      command: [install, --mode=0644, /etc/sealed-local/policy.toml, {{ $directory }}/policy.toml]
      {{- include "sealed-local.brokerConfined" $ | nindent 6 }}
        - {name: policy, mountPath: /etc/sealed-local, readOnly: true}
    {{- end }}
  containers:
    - name: broker
      image: {{ $image }}
      imagePullPolicy: {{ $.Values.images.broker.pullPolicy }}
      args: [serve, {{ $directory }}, --listen=0.0.0.0:8443, --log-level={{ .logLevel }}]
      ports:
        - {name: https, containerPort: 8443, protocol: TCP}
      {{- if $onServer }}
      # Away from the database, or from its master key, it leaves its guests to another one.
      readinessProbe:
        httpGet: {path: /readyz, port: https, scheme: HTTPS}
        periodSeconds: 10
        timeoutSeconds: 5
      {{- else }}
      # There is no other one: while its database is busy it is better heard than not.
      readinessProbe:
        httpGet: {path: /healthz, port: https, scheme: HTTPS}
        periodSeconds: 10
        timeoutSeconds: 5
      {{- end }}
      livenessProbe:
        httpGet: {path: /healthz, port: https, scheme: HTTPS}
        initialDelaySeconds: 15
        periodSeconds: 30
        timeoutSeconds: 15
        failureThreshold: 5
      {{- include "sealed-local.brokerContainer" $ | nindent 6 }}
        {{- if and $onServer .postgresql.collateralConfigMap }}
        - {name: collateral, mountPath: {{ $directory }}/collateral, readOnly: true}
        {{- end }}
  volumes:
    # For what SQLite sorts: in memory, never on the node's disk.
    - name: tmp
      emptyDir: {medium: Memory, sizeLimit: 16Mi}
    {{- if .policy }}
    - name: policy
      configMap: {name: {{ $fullname }}-broker}
    {{- end }}
    {{- if $onServer }}
    {{- $needed := list "audit.key" "ca.pem" "server.key" "server.pem" "token.key" "token.pem" }}
    {{- if not .policy }}{{ $needed = append $needed "policy.toml" }}{{ end }}
    {{- include "sealed-local.brokerKeysVolumes" (dict "root" $ "needed" $needed "optional" (list "admin.token")) | nindent 4 }}
    {{- with .postgresql.collateralConfigMap }}
    - name: collateral
      configMap: {name: {{ . }}}
    {{- end }}
    {{- else }}
    {{- with .storage.existingClaim }}
    - name: data
      persistentVolumeClaim: {claimName: {{ . }}}
    {{- end }}
    {{- end }}
{{- end }}
{{- end -}}

{{- /* What every pod with the broker's program has. */ -}}
{{- define "sealed-local.brokerPodCommon" -}}
{{- with .Values.broker -}}
serviceAccountName: {{ include "sealed-local.fullname" $ }}-broker
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  # Only the volume's own root is changed, once: a later change would open the keys to the group, and the broker
  # would refuse to start. For the same reason its directory lies one level below.
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end }}
{{- end -}}

{{- /* What the broker's containers share. Ends with the list of mounts, so that one more can follow. */ -}}
{{- define "sealed-local.brokerContainer" -}}
{{- with .Values.broker.masterKeySecret -}}
env:
  - name: SEALED_LOCAL_BROKER_MASTER_KEY
    valueFrom: {secretKeyRef: {name: {{ . }}, key: master-key}}
{{ end -}}
{{ include "sealed-local.brokerConfined" . }}
{{- end -}}

{{- /* The same for those that need no master key. */ -}}
{{- define "sealed-local.brokerConfined" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
resources:
  {{- toYaml .Values.broker.resources | nindent 2 }}
volumeMounts:
  - {name: data, mountPath: /var/lib/sealed-local}
  - {name: tmp, mountPath: /tmp}
{{- end -}}

{{- /* Fills the broker's directory, in memory, from the Secrets. Not `broker init`: a key that is missing must not be made. */ -}}
{{- define "sealed-local.brokerKeysContainer" -}}
{{- $directory := include "sealed-local.brokerDirectory" . -}}
# A Secret's own files can't be used: the group may read them, which the broker refuses.
- name: keys
  image: {{ include "sealed-local.image" (dict "root" $ "image" .Values.images.broker) }}
  imagePullPolicy: {{ .Values.images.broker.pullPolicy }}
  command:
    - sh
    - -ec
    - |
      install -d -m 0700 {{ $directory }} {{ $directory }}/collateral
      install -m 0600 -t {{ $directory }} /etc/sealed-local/keys/*
  {{- include "sealed-local.brokerConfined" . | nindent 2 }}
    - {name: keys, mountPath: /etc/sealed-local/keys, readOnly: true}
{{- end -}}

{{- /* The directory and what it is filled from: of the Secret only the entries "needed", and of "optional" what is there. */ -}}
{{- define "sealed-local.brokerKeysVolumes" -}}
{{- $optional := concat .optional (list "kms.toml" "kms.pin") -}}
{{- $needed := .needed -}}
{{- if not .root.Values.broker.masterKeySecret -}}{{- $needed = append $needed "master.key" -}}{{- end -}}
{{- with .root.Values.broker.postgresql -}}
- name: data
  emptyDir: {medium: Memory, sizeLimit: 4Mi}
- name: keys
  projected:
    defaultMode: 0440
    sources:
      - secret:
          name: {{ .keysSecret }}
          items:
            {{- range $needed }}
            - {key: {{ . }}, path: {{ . }}}
            {{- end }}
      - secret:
          name: {{ .keysSecret }}
          optional: true
          items:
            {{- range $optional }}
            - {key: {{ . }}, path: {{ . }}}
            {{- end }}
      - secret:
          name: {{ .conninfoSecret.name }}
          items:
            - {key: {{ .conninfoSecret.key }}, path: database.conninfo}
      - secret:
          name: {{ .conninfoSecret.name }}
          optional: true
          items:
            {{- range list "database-ca.pem" "database-client.pem" "database-client.key" }}
            - {key: {{ . }}, path: {{ . }}}
            {{- end }}
{{- end }}
{{- end -}}

{{- /* To whom a pod with the broker's program connects: to the database and to whoever resolves its name, or to nobody. */ -}}
{{- define "sealed-local.brokerEgress" -}}
{{- if not (include "sealed-local.brokerOnServer" .) -}}
# It connects to nobody.
egress: []
{{- else -}}
{{- with .Values.broker.postgresql -}}
egress:
  - ports:
      - {port: {{ .port }}, protocol: TCP}
    to:
      {{- toYaml .to | nindent 6 }}
  {{- with .dns }}
  - ports:
      - {port: 53, protocol: UDP}
      - {port: 53, protocol: TCP}
    to:
      {{- toYaml . | nindent 6 }}
  {{- end }}
{{- end }}
{{- end }}
{{- end -}}
