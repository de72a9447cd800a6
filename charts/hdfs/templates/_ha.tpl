{{/* Several NameNodes: one name service, shared journals, and a failover controller beside each NameNode. As roles/hdfs/vars has it for hosts. */}}
{{- define "hdfs.site" -}}
{{- $ports := include "common.ports" . | fromYaml -}}
{{- $journals := list -}}
{{- range $number := until (int .Values.journalnode.replicas) -}}
{{- $journals = append $journals (printf "%s:%d" (include "common.host" (list $ "hdfs-journalnode" $number)) (int $ports.hdfs_journalnode_rpc)) -}}
{{- end -}}
{{- $names := list -}}
<property><name>dfs.nameservices</name><value>gridstead</value></property>
{{ range $number := until (int .Values.namenode.replicas) -}}
{{- $name := printf "nn%d" (add1 $number) -}}
{{- $names = append $names $name -}}
{{- $host := include "common.host" (list $ "hdfs-namenode" $number) -}}
<property><name>dfs.namenode.rpc-address.gridstead.{{ $name }}</name><value>{{ $host }}:{{ $ports.hdfs_namenode_rpc }}</value></property>
<property><name>dfs.namenode.http-address.gridstead.{{ $name }}</name><value>{{ $host }}:{{ $ports.hdfs_namenode_http }}</value></property>
{{ end -}}
<property><name>dfs.ha.namenodes.gridstead</name><value>{{ join "," $names }}</value></property>
<property><name>dfs.ha.namenode.id</name><value>nn@{ID}</value></property>
<property><name>dfs.client.failover.proxy.provider.gridstead</name><value>org.apache.hadoop.hdfs.server.namenode.ha.ConfiguredFailoverProxyProvider</value></property>
<property><name>dfs.client.failover.sleep.max.millis</name><value>2000</value></property>
<property><name>dfs.client.failover.max.attempts</name><value>45</value></property>
<property><name>dfs.namenode.shared.edits.dir</name><value>qjournal://{{ join ";" $journals }}/gridstead</value></property>
<property><name>dfs.ha.tail-edits.in-progress</name><value>true</value></property>
<property><name>dfs.ha.tail-edits.period</name><value>5s</value></property>
<property><name>dfs.ha.automatic-failover.enabled</name><value>true</value></property>
<property><name>dfs.ha.fencing.methods</name><value>shell(/bin/true)</value></property>
{{- end -}}
