//! Objects as an API server sends them, with all fields that the agent ignores and must parse.

use serde_json::{Value, json};

use super::pods::Identity;

pub(super) const API_VERSION: &str = "sandboxhealth.dev/v1alpha1";
/// The only resource version.
pub(super) const VERSION: &str = "184467";

const STARTED: &str = "2026-11-24T08:00:00Z";
const NAMESPACE: &str = "default";
const CONDITIONS: [&str; 5] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

/// A pod of a Deployment that shares its PID namespace, as the kubelet left it.
pub(in crate::measure) fn pod(pod: &Identity, node: &str) -> Value {
    let labels = json!({"app.kubernetes.io/name": "web", "app.kubernetes.io/part-of": "shop", "pod-template-hash": "7c9f8d6b5"});
    let names = ["nginx", "helper"];
    let statuses: Vec<_> =
        names.iter().zip(&pod.containers).map(|(name, id)| container_status(name, id)).collect();
    let tolerations = ["not-ready", "unreachable"].map(|taint| {
        let key = format!("node.kubernetes.io/{taint}");
        json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300})
    });
    let conditions = CONDITIONS.map(|kind| {
        json!({"type": kind, "status": "True", "observedGeneration": 1, "lastProbeTime": null, "lastTransitionTime": STARTED})
    });
    json!({
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {
            "name": pod.name, "generateName": "web-7c9f8d6b5-", "namespace": NAMESPACE, "uid": pod.uid,
            "resourceVersion": VERSION, "generation": 1, "creationTimestamp": STARTED,
            "labels": labels,
            "annotations": {
                "prometheus.io/scrape": "true", "prometheus.io/port": "9113",
                "kubectl.kubernetes.io/restartedAt": STARTED,
            },
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7c9f8d6b5",
                "uid": "0c8b6f52-9d2a-4a62-8f70-1f4d6f0c9b11", "controller": true, "blockOwnerDeletion": true,
            }],
            "managedFields": managed_fields(&names),
        },
        "spec": {
            "shareProcessNamespace": true,
            "nodeName": node,
            "containers": [container("nginx", 8080), container("helper", 8081)],
            "volumes": [
                {"name": "html", "configMap": {"name": "web-html", "defaultMode": 420}},
                {"name": "cache", "emptyDir": {"sizeLimit": "64Mi"}},
                {"name": "kube-api-access-x7k2p", "projected": {"defaultMode": 420, "sources": [
                    {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                    {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
                ]}},
            ],
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
            "serviceAccountName": "default", "serviceAccount": "default", "schedulerName": "default-scheduler",
            "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
            "tolerations": tolerations,
            "priority": 0, "enableServiceLinks": true, "preemptionPolicy": "PreemptLowerPriority",
        },
        "status": {
            "phase": "Running", "startTime": STARTED, "qosClass": "Burstable", "observedGeneration": 1,
            "hostIP": "10.0.0.1", "hostIPs": [{"ip": "10.0.0.1"}], "podIP": "10.200.0.10", "podIPs": [{"ip": "10.200.0.10"}],
            "conditions": conditions,
            "containerStatuses": statuses,
        },
    })
}

fn container(name: &str, port: u16) -> Value {
    let probe = |path: &str| {
        json!({
            "httpGet": {"path": path, "port": port, "scheme": "HTTP"},
            "initialDelaySeconds": 5, "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3,
        })
    };
    json!({
        "name": name,
        "image": format!("example.com/shop/{name}:1.27.3"),
        "ports": [{"name": name, "containerPort": port, "protocol": "TCP"}],
        "env": [
            {"name": "POD_NAME", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}},
            {"name": "GOMAXPROCS", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "0"}}},
            {"name": "DATABASE_URL", "valueFrom": {"secretKeyRef": {"name": "database", "key": "url"}}},
            {"name": "LOG_LEVEL", "value": "info"},
        ],
        "resources": {"limits": {"cpu": "500m", "memory": "256Mi"}, "requests": {"cpu": "50m", "memory": "64Mi"}},
        "volumeMounts": [
            {"name": "html", "mountPath": "/usr/share/nginx/html", "readOnly": true},
            {"name": "cache", "mountPath": "/var/cache/nginx"},
            {"name": "kube-api-access-x7k2p", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true},
        ],
        "livenessProbe": probe("/healthz"),
        "readinessProbe": probe("/readyz"),
        "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File", "imagePullPolicy": "IfNotPresent",
        "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}},
    })
}

fn container_status(name: &str, id: &str) -> Value {
    json!({
        "name": name, "state": {"running": {"startedAt": STARTED}}, "lastState": {}, "ready": true, "restartCount": 0,
        "image": format!("example.com/shop/{name}:1.27.3"),
        "imageID": format!("example.com/shop/{name}@sha256:{id}"),
        "containerID": format!("containerd://{id}"), "started": true,
        "allocatedResources": {"cpu": "50m", "memory": "64Mi"},
        "resources": {"limits": {"cpu": "500m", "memory": "256Mi"}, "requests": {"cpu": "50m", "memory": "64Mi"}},
        "volumeMounts": [{"name": "html", "mountPath": "/usr/share/nginx/html", "readOnly": true, "recursiveReadOnly": "Disabled"}],
        "user": {"linux": {"uid": 1000, "gid": 0, "supplementalGroups": [0]}},
    })
}

fn managed_fields(names: &[&str]) -> Value {
    let own = || json!({".": {}});
    let mut containers = serde_json::Map::new();
    for name in names {
        let fields = [
            "f:env",
            "f:image",
            "f:imagePullPolicy",
            "f:livenessProbe",
            "f:name",
            "f:ports",
            "f:readinessProbe",
            "f:resources",
            "f:securityContext",
            "f:terminationMessagePath",
            "f:terminationMessagePolicy",
            "f:volumeMounts",
        ];
        let fields: serde_json::Map<_, _> = fields.iter().map(|field| ((*field).to_owned(), own())).collect();
        containers.insert(format!("k:{{\"name\":\"{name}\"}}"), fields.into());
    }
    let conditions: serde_json::Map<_, _> = CONDITIONS.iter()
        .map(|kind| {
            let fields = json!({".": {}, "f:lastProbeTime": {}, "f:lastTransitionTime": {}, "f:observedGeneration": {}, "f:status": {}, "f:type": {}});
            (format!("k:{{\"type\":\"{kind}\"}}"), fields)
        })
        .collect();
    json!([
        {"manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1", "time": STARTED, "fieldsType": "FieldsV1", "fieldsV1": {
            "f:metadata": {"f:annotations": own(), "f:generateName": {}, "f:labels": own(), "f:ownerReferences": own()},
            "f:spec": {
                "f:containers": containers, "f:dnsPolicy": {}, "f:enableServiceLinks": {}, "f:restartPolicy": {},
                "f:schedulerName": {}, "f:securityContext": own(), "f:shareProcessNamespace": {}, "f:terminationGracePeriodSeconds": {}, "f:volumes": own(),
            },
        }},
        {"manager": "kubelet", "operation": "Update", "apiVersion": "v1", "time": STARTED, "fieldsType": "FieldsV1", "subresource": "status", "fieldsV1": {
            "f:status": {
                "f:conditions": conditions, "f:containerStatuses": {}, "f:hostIP": {}, "f:hostIPs": {}, "f:observedGeneration": {},
                "f:phase": {}, "f:podIP": {}, "f:podIPs": own(), "f:startTime": {},
            },
        }},
    ])
}

/// The object of a pod as the controller creates it, before any agent has reported.
pub(super) fn sandbox_health(pod: &Identity, node: &str) -> Value {
    let condition = |kind: &str| {
        json!({
            "type": kind, "status": "Unknown", "reason": "NoReport", "lastTransitionTime": STARTED,
            "message": "the agent of the node has not reported yet",
        })
    };
    json!({
        "apiVersion": API_VERSION,
        "kind": "SandboxHealth",
        "metadata": {
            "name": pod.name, "namespace": NAMESPACE, "uid": pod.uid.replacen("6f1c2a34", "aa1c2a34", 1),
            "resourceVersion": VERSION, "generation": 1, "creationTimestamp": STARTED,
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": pod.name, "uid": pod.uid}],
            "managedFields": [{
                "manager": "sandbox-controller", "operation": "Apply", "apiVersion": API_VERSION, "time": STARTED, "fieldsType": "FieldsV1",
                "fieldsV1": {"f:metadata": {"f:ownerReferences": {}}, "f:spec": {"f:nodeName": {}, "f:podName": {}, "f:podUID": {}}},
            }],
        },
        "spec": {"podName": pod.name, "podUID": pod.uid, "nodeName": node},
        "status": {"conditions": (["Healthy", "ZombiesReaped"].map(condition))},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pod_is_as_large_as_real_one_without_its_sandbox() {
        let identity = Identity::of(3);
        let text = pod(&identity, "node-1").to_string();
        assert!((6_000..12_000).contains(&text.len()), "{} bytes", text.len());
        assert_eq!(text.matches("containerd://").count(), identity.containers.len());
    }

    #[test]
    fn object_refers_to_its_pod() {
        let identity = Identity::of(3);
        let object = sandbox_health(&identity, "node-1");
        assert_eq!(object["spec"]["podUID"], identity.uid);
        assert_ne!(object["metadata"]["uid"], identity.uid);
    }
}
