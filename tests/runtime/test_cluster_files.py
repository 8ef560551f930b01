"""Launcher files by Ray's own schema; manifests by the field names that KubeRay publishes."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from posegen_ray.compose import compose_config
from posegen_ray.runtime.placement import Node, plan

FOLDER = Path(__file__).parents[2] / "cluster"
LAUNCHER = sorted(FOLDER.glob("*.yaml"))
MANIFESTS = sorted((FOLDER / "kuberay").glob("*.yaml"))
PEOPLE = 6


def prepared(file):
    return prepare_config(yaml.safe_load(file.read_text()))


def test_every_way_has_its_file():
    assert [file.stem for file in LAUNCHER] == ["aws", "gcp", "on_premise"]
    assert [file.stem for file in MANIFESTS] == ["cluster", "job"]
    readme = (FOLDER / "README.md").read_text()
    for file in [*LAUNCHER, *MANIFESTS]:
        assert str(file.relative_to(FOLDER)) in readme


@pytest.mark.parametrize("file", LAUNCHER, ids=lambda file: file.name)
def test_launcher_file_is_valid_and_asks_for_a_token(file):
    config = prepared(file)
    validate_config(config)
    starts = [c for key in ("head", "worker") for c in config[f"{key}_start_ray_commands"]]
    starts = [command for command in starts if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "0.0.0.0" not in file.read_text()
    assert any(".ray/auth_token" in target for target in config["file_mounts"])


@pytest.mark.parametrize("file", [f for f in LAUNCHER if f.stem in ("aws", "gcp")])
def test_head_is_on_demand_workers_are_not_and_may_all_go(file):
    config = prepared(file)
    types = config["available_node_types"]
    (workers,) = (kind for name, kind in types.items() if name != config["head_node_type"])
    assert workers["min_workers"] == 0
    assert workers["max_workers"] > 1
    cheap = ("spot", "preemptible: true")
    assert any(word in yaml.dump(workers["node_config"]) for word in cheap)
    head = types[config["head_node_type"]]
    assert not any(word in yaml.dump(head["node_config"]) for word in cheap)


def machines(file):
    """Two workers and the head of a launcher file, or of a manifest."""
    config = yaml.safe_load_all(file.read_text())
    *_, config = config
    if "available_node_types" in config:
        kinds = config["available_node_types"]
        sizes = {name: kind["resources"] for name, kind in kinds.items()}
        head, worker = sizes.pop(config["head_node_type"]), next(iter(sizes.values()))
        return [Node("head", head["CPU"]), *(Node(n, worker["CPU"], worker["GPU"]) for n in "ab")]
    spec = config["spec"].get("rayClusterSpec", config["spec"])
    (group,) = spec["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    worker = int(limits["cpu"]), int(limits["nvidia.com/gpu"])
    return [Node("head", int(spec["headGroupSpec"]["rayStartParams"]["num-cpus"]))] + [
        Node(name, *worker) for name in "ab"
    ]


@pytest.mark.parametrize("file", [FOLDER / "aws.yaml", FOLDER / "gcp.yaml", *MANIFESTS])
def test_two_workers_of_the_file_are_enough_for_the_cluster_preset(file):
    config = compose_config(["runtime=cluster"]).runtime
    plan(config, machines(file), PEOPLE, private=False)


# --- KubeRay ------------------------------------------------------------------------------------
# Field names of ray.io/v1 as KubeRay 1.6 publishes them (its "CRD API reference"), and of the parts
# of Kubernetes' pods that our manifests use. A type's name leads to its own fields; [] is a list.

FIELDS = {
    "RayCluster": "apiVersion kind metadata:Meta spec:RayClusterSpec",
    "RayJob": "apiVersion kind metadata:Meta spec:RayJobSpec",
    "RayClusterSpec": (
        "authOptions:AuthOptions suspend managedBy autoscalerOptions:AutoscalerOptions "
        "headServiceAnnotations enableInTreeAutoscaling gcsFaultToleranceOptions "
        "headGroupSpec:HeadGroupSpec rayVersion workerGroupSpecs:[]WorkerGroupSpec upgradeStrategy"
    ),
    "AuthOptions": "mode secretName enableK8sTokenAuth",
    "AutoscalerOptions": (
        "resources image imagePullPolicy securityContext idleTimeoutSeconds upscalingMode version "
        "env envFrom volumeMounts"
    ),
    "HeadGroupSpec": (
        "template:Pod headService enableIngress resources labels rayStartParams serviceType"
    ),
    "WorkerGroupSpec": (
        "suspend groupName replicas minReplicas maxReplicas idleTimeoutSeconds resources labels "
        "rayStartParams template:Pod scaleStrategy numOfHosts"
    ),
    "RayJobSpec": (
        "activeDeadlineSeconds backoffLimit rayClusterSpec:RayClusterSpec "
        "submitterPodTemplate:Pod metadata clusterSelector submitterConfig managedBy "
        "deletionStrategy entrypoint runtimeEnvYAML jobId submissionMode entrypointResources "
        "entrypointNumCpus entrypointNumGpus ttlSecondsAfterFinished shutdownAfterJobFinishes "
        "suspend"
    ),
    "PersistentVolumeClaim": "apiVersion kind metadata:Meta spec:ClaimSpec",
    "ClaimSpec": "accessModes storageClassName resources volumeName volumeMode",
    "Meta": "name namespace labels annotations",
    "Pod": "metadata:Meta spec:PodSpec",
    "PodSpec": (
        "containers:[]Container initContainers:[]Container volumes:[]Volume tolerations "
        "nodeSelector restartPolicy serviceAccountName imagePullSecrets affinity securityContext"
    ),
    "Container": (
        "name image imagePullPolicy command args env:[]Env envFrom resources:Resources ports "
        "volumeMounts:[]Mount lifecycle securityContext"
    ),
    "Env": "name value valueFrom",
    "Resources": "requests limits",
    "Mount": "name mountPath readOnly subPath",
    "Volume": "name persistentVolumeClaim emptyDir configMap secret nfs",
}
REQUIRED = {
    "RayClusterSpec": {"headGroupSpec"},
    "HeadGroupSpec": {"template"},
    "WorkerGroupSpec": {"groupName", "template", "minReplicas", "maxReplicas"},
    "RayJobSpec": {"entrypoint", "rayClusterSpec"},
    "PodSpec": {"containers"},
    "Container": {"name", "image"},
}
CHOICES = {
    "mode": {"token"},  # "disabled" exists; we do not want it
    "version": {"v1", "v2"},
    "upscalingMode": {"Default", "Aggressive", "Conservative"},
    "submissionMode": {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"},
    "serviceType": {"ClusterIP"},  # NodePort and LoadBalancer would listen to the world
}


@dataclass
class Manifest:
    """One document of a manifest, and what is wrong with it."""

    document: dict
    faults: list

    def check(self, value, kind, path):
        if kind.startswith("[]"):
            for number, item in enumerate(value):
                self.check(item, kind[2:], f"{path}[{number}]")
            return
        known = dict((field + ":").split(":")[:2] for field in FIELDS[kind].split())
        self.faults += [f"{path}.{name}: not a field of {kind}" for name in value.keys() - known]
        missing = REQUIRED.get(kind, set()) - value.keys()
        self.faults += [f"{path}: {kind} needs {name}" for name in missing]
        for name, item in value.items():
            if known.get(name):
                self.check(item, known[name], f"{path}.{name}")
            elif name in CHOICES and item not in CHOICES[name]:
                self.faults.append(f"{path}.{name}: {item!r}")


def documents(file):
    return [document for document in yaml.safe_load_all(file.read_text()) if document]


def faults(document):
    manifest = Manifest(document, [])
    manifest.check(document, document["kind"], document["kind"])
    return manifest.faults


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.name)
def test_manifest_has_only_published_fields_autoscaling_and_a_token(file):
    for document in documents(file):
        assert faults(document) == []
    main = documents(file)[-1]
    assert main["apiVersion"] == "ray.io/v1"
    spec = main["spec"].get("rayClusterSpec", main["spec"])
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] is True
    (group,) = spec["workerGroupSpecs"]
    assert group["minReplicas"] == 0 < group["maxReplicas"]
    assert all(isinstance(v, str) for v in spec["headGroupSpec"]["rayStartParams"].values())


def test_a_wrong_field_would_be_found():
    document = documents(MANIFESTS[0])[-1]
    document["spec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    document["spec"]["authOptions"]["mode"] = "none"
    del document["spec"]["headGroupSpec"]["template"]
    assert faults(document) == [
        "RayCluster.spec.authOptions.mode: 'none'",
        "RayCluster.spec.headGroupSpec: HeadGroupSpec needs template",
        "RayCluster.spec.workerGroupSpecs[0].maxReplica: not a field of WorkerGroupSpec",
    ]


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.name)
def test_ray_of_the_files_is_the_ray_that_is_installed(file):
    import ray

    for other in (
        FOLDER / "kuberay" / "Dockerfile",
        *(f for f in LAUNCHER if f.stem != "on_premise"),
    ):
        assert f"rayproject/ray:{ray.__version__}-py311" in other.read_text()
    assert f'rayVersion: "{ray.__version__}"' in file.read_text()
