"""The manifests of docker/kubernetes render, fit the schemas of Kubernetes and KubeRay, and keep what they promise."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.conftest import run_cli
from trainer.recipes.pretrain import named_recipe

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "docker" / "kubernetes"
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
JOBS = sorted((KUBERNETES / "jobs").iterdir())
_SCHEMA_VERSION = "1.33"  # of Kubernetes
needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which renders, is not installed")


def rendered(overlay: str) -> list[dict[str, Any]]:
    """Return the objects of an overlay."""
    command = ["kubectl", "kustomize", KUBERNETES / "overlays" / overlay]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def the(kind: str, objects: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the one object of a kind."""
    [found] = [each for each in objects if each["kind"] == kind]
    return found


def pod_templates(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    spec = cluster["spec"]
    return [group["template"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def check(resource: dict[str, Any]) -> None:
    """Compare an object with the schema of its kind. Raises where it does not fit."""
    if resource["apiVersion"].startswith("ray.io/"):
        schemas = yaml.safe_load((Path(__file__).parent / "kuberay.yaml").read_text())
        jsonschema.validate(resource, schemas[resource["kind"]])
        for template in pod_templates(resource) if resource["kind"] == "RayCluster" else []:
            pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": template}
            kubernetes_validate.validate(pod, _SCHEMA_VERSION, strict=True)
    else:
        kubernetes_validate.validate(resource, _SCHEMA_VERSION, strict=True)


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_fits_its_schema(overlay: str) -> None:
    objects = rendered(overlay)
    assert {each["kind"] for each in objects} == {
        "ServiceAccount", "ConfigMap", "PodDisruptionBudget", "NetworkPolicy", "RayCluster",
    }  # fmt: skip
    for each in objects:
        check(each)


def test_a_field_that_nobody_knows_is_found() -> None:
    with pytest.raises(jsonschema.ValidationError, match="workerGroups"):
        check({"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {}, "spec": {"workerGroups": []}})
    policy = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "x"}}
    with pytest.raises(kubernetes_validate.ValidationError):
        check(policy | {"spec": {"minimum": 1}})


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_workers_of_a_run_are_those_that_the_cluster_may_have(overlay: str) -> None:
    objects = rendered(overlay)
    [group] = the("RayCluster", objects)["spec"]["workerGroupSpecs"]
    settings = the("ConfigMap", objects)["data"]
    assert settings["WORKERS"] == f"{group['minReplicas']}:{group['maxReplicas']}"
    [container] = group["template"]["spec"]["containers"]
    has_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
    assert ("--gpu" in settings["WORKER_OPTIONS"].split()) == has_gpu
    assert container["image"] == f"bit-pretrain:{'cuda' if has_gpu else 'cpu'}"
    assert int(settings["TASKS"]) == group["maxReplicas"] * int(container["resources"]["requests"]["cpu"])
    assert int(settings["LANES"]) == named_recipe("bit-s").batch_size


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_object_store_of_ray_fits_into_shared_memory_and_maintenance_may_take_workers(overlay: str) -> None:
    cluster = the("RayCluster", rendered(overlay))["spec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        [memory] = [each for each in group["template"]["spec"]["volumes"] if each["name"] == "shared-memory"]
        most = int(memory["emptyDir"]["sizeLimit"].removesuffix("Gi")) << 30
        assert int(group["rayStartParams"]["object-store-memory"]) <= most / 2  # PyTorch's loaders take some, too
    budget = the("PodDisruptionBudget", rendered(overlay))["spec"]
    assert budget["selector"]["matchLabels"]["ray.io/node-type"] == "head"


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_have_no_rights_and_no_key_is_in_an_environment(overlay: str) -> None:
    objects = rendered(overlay)
    cluster = the("RayCluster", objects)
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    for template in pod_templates(cluster):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["runAsUser"] == 10001  # of docker/Dockerfile
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]
    named = [*the("ConfigMap", objects)["data"], *re.findall(r"\{name: (\w+)|- name: (\w+)", str(cluster))]
    assert [name for name in map(str, named) if re.search("SECRET|ACCESS_KEY|AUTH_TOKEN", name)] == []


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_worker_that_is_taken_away_is_drained_within_its_time(overlay: str) -> None:
    [group] = the("RayCluster", rendered(overlay))["spec"]["workerGroupSpecs"]
    spec = group["template"]["spec"]
    [_, _, script] = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    seconds = re.search(r"--deadline-remaining-seconds (\d+) && sleep (\d+);", script)
    assert seconds
    assert int(seconds[1]) == int(seconds[2]) < spec["terminationGracePeriodSeconds"]
    options = shlex.split(script.partition("&&")[0])
    shown = run_cli("ray", "drain-node", "--help").stdout
    assert [option for option in options if option.startswith("--") and option not in shown] == []


@needs_kubectl
def test_spot_nodes_are_tolerated_and_asked_for() -> None:
    [group] = the("RayCluster", rendered("gpu-spot"))["spec"]["workerGroupSpecs"]
    spec = group["template"]["spec"]
    assert "spot" in spec["nodeSelector"].values()
    assert {toleration["key"] for toleration in spec["tolerations"]} == {"nvidia.com/gpu", "spot"}


def test_the_cluster_runs_the_version_of_ray_that_we_pin() -> None:
    cluster = yaml.safe_load((KUBERNETES / "base" / "ray-cluster.yaml").read_text())
    assert f"ray=={cluster['spec']['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_jobs_run_on_the_cluster_and_give_commands_that_exist(path: Path) -> None:
    job = yaml.safe_load(path.read_text())
    check(job)
    cluster = yaml.safe_load((KUBERNETES / "base" / "ray-cluster.yaml").read_text())
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    [shell, option, script] = shlex.split(job["spec"]["entrypoint"])
    assert (shell, option) == ("sh", "-c")
    words = script.split()
    shown = run_cli(*words[:2], "--help").stdout
    assert [word for word in words if word.startswith("--") and word not in shown] == []
    known = set(
        yaml.safe_load((KUBERNETES / "overlays/cpu/kustomization.yaml").read_text())["configMapGenerator"][0][
            "literals"
        ]
    )
    names = {literal.partition("=")[0] for literal in known}
    assert {*re.findall(r"\$(\w+)", script)} <= names
