"""The manifests of launch/kubernetes are what Kubernetes and JobSet take, and fit the program: how it is told of its launch, how it ends, what it writes."""

import copy
import functools
import gzip
import importlib.util
import json
import math
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import jsonschema
import kubernetes_validate
import pytest
import yaml

from cxr_jax import processes

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "launch" / "kubernetes"
GIVEN = {"RUN": "race-mimic", "ARGS": "--config=configs/race.py:phantom,paper", "IMAGE": "images.example/cxr_jax:1", "STORAGE_CLASS": "shared", "GPU_POOL": "gpus"}
LAUNCHES = ("gpu", "tpu")
# The oldest version that the manifests are for, and the newest whose schemas there are.
VERSIONS = ("1.31", "1.37")


def _load(path: pathlib.Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


render = _load(FOLDER / "render.py")


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, as the API does and YAML's reader does not."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(set(keys)) == len(keys), f"a key twice: {sorted(keys)} {node.start_mark}"
        return super().construct_mapping(node, deep)


def documents(name: str, **given) -> list[dict]:
    return list(yaml.load_all(render.render(name, GIVEN | given), _Loader))


def only(kind: str, name: str, **given) -> dict:
    (found,) = (document for document in documents(name, **given) if document["kind"] == kind)
    return found


def pod(document: dict) -> dict:
    """The spec of its pods."""
    if document["kind"] == "JobSet":
        return job(document)["template"]["spec"]
    return document["spec"] if document["kind"] == "Pod" else document["spec"]["template"]["spec"]


def job(jobset: dict) -> dict:
    (replicated,) = jobset["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def container(document: dict) -> dict:
    (found,) = pod(document)["containers"]
    return found


def environment(document: dict) -> dict:
    return {entry["name"]: entry.get("value") for entry in container(document)["env"]}


def walk(node, path=()):
    """(path, key) of every key of every mapping."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        if isinstance(node, dict):
            yield path, key
        yield from walk(value, (*path, key))


ALL = [(name, number) for name in render.manifests() for number in range(len(documents(name)))]
PODS = [(name, number) for name, number in ALL if documents(name)[number]["kind"] in ("JobSet", "Job", "Pod")]


# ------------------------------------------------------------------------------------------------------------- schemas


def closed(schema):
    """A schema of a custom resource definition that refuses what it does not know, as the API server does where kubectl asks it to be strict."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "type" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    return schema


@functools.cache
def jobsets() -> jsonschema.Draft202012Validator:
    definition = json.loads(gzip.decompress((ROOT / "tests/kubernetes/jobset.x-k8s.io_jobsets.json.gz").read_bytes()))
    (version,) = definition["spec"]["versions"]
    assert (definition["spec"]["group"], version["name"]) == ("jobset.x-k8s.io", "v1alpha2")
    return jsonschema.Draft202012Validator(closed(version["schema"]["openAPIV3Schema"]))


def check(document: dict) -> None:
    """Raises ValidationError where a document is not what its published schema says."""
    if document.get("kind") != "JobSet":
        for version in VERSIONS:
            kubernetes_validate.validate(document, version, strict=True)
        return
    jobsets().validate(document)
    if document.get("apiVersion") != "jobset.x-k8s.io/v1alpha2":
        raise jsonschema.ValidationError("no such version of JobSet")
    # Of which the definition says no more than that it is an object.
    kubernetes_validate.validate({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": document["metadata"]}, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("name, number", ALL)
def test_manifests_are_what_their_schemas_say(name, number):
    check(documents(name)[number])


# Whose keys are the writer's own.
_FREE = ("labels", "annotations", "matchLabels", "nodeSelector", "requests", "limits")


@pytest.mark.parametrize("name, number", ALL)
def test_a_misspelt_field_is_refused_wherever_it_is(name, number):
    document = documents(name)[number]
    fields = [(path, key) for path, key in walk(document) if key not in ("kind", "apiVersion") and (not path or path[-1] not in _FREE)]
    assert len(fields) > (70 if document["kind"] in ("JobSet", "Job") else 1)
    for path, key in fields:
        misspelt = copy.deepcopy(document)
        place = functools.reduce(lambda node, step: node[step], path, misspelt)
        place[f"{key}s"] = place.pop(key)
        with pytest.raises(jsonschema.ValidationError):
            check(misspelt)
            pytest.fail(f"{'.'.join(map(str, (*path, key)))}, misspelt, was taken")


@pytest.mark.parametrize(
    "path, value",
    [
        (("apiVersion",), "jobset.x-k8s.io/v1"),
        (("spec", "failurePolicy", "rules", 0, "action"), "RestartForEver"),
        (("spec", "failurePolicy", "maxRestarts"), "5"),
        (("spec", "replicatedJobs", 0, "template", "spec", "parallelism"), "2"),
        (("spec", "replicatedJobs", 0, "template", "spec", "podFailurePolicy", "rules", 0, "onExitCodes"), {"operator": "In"}),
        (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "containers", 0, "env", 1, "value"), 2),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(path, value):
    document = only("JobSet", "gpu")
    functools.reduce(lambda node, step: node[step], path[:-1], document)[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        check(document)


# -------------------------------------------------------------------------------------------- processes find each other


@pytest.mark.parametrize("name, hosts", [("gpu", 2), ("gpu", 1), ("gpu", 16), ("tpu", 4)])
def test_every_pod_is_told_of_the_launch_that_there_is(name, hosts):
    document = only("JobSet", name, **({"GPU_HOSTS": str(hosts)} if name == "gpu" else {}))
    run, (replicated,) = document["metadata"]["name"], document["spec"]["replicatedJobs"]
    assert run == "race-mimic" and replicated["replicas"] == 1
    assert job(document)["parallelism"] == job(document)["completions"] == hosts and job(document)["completionMode"] == "Indexed"

    # JobSet names a pod's host JOBSET-REPLICATEDJOB-JOB-POD, in the domain of a service that is called as the JobSet is unless told otherwise.
    assert document["spec"]["network"] == {"enableDNSHostnames": True, "publishNotReadyAddresses": True}
    first = f"{run}-{replicated['name']}-0-0.{run}"
    (port,) = container(document)["ports"]
    (number,) = (entry for entry in container(document)["env"] if entry["name"] == "JAX_PROCESS_ID")
    assert number["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    for index in (0, hosts - 1):
        found = processes.launched(environment(document) | {"JAX_PROCESS_ID": str(index)})
        assert found == processes.Launch(f"{first}:{port['containerPort']}", hosts, index)

    (waiting,) = pod(document)["initContainers"]
    assert f"i < {hosts};" in waiting["command"][-1] and f'"{first.replace("-0-0.", "-0-$i.")}"' in waiting["command"][-1]


@pytest.mark.parametrize("name", LAUNCHES)
def test_pods_of_a_launch_speak_with_each_other_and_ask_for_names(name):
    policy, run = only("NetworkPolicy", name), only("JobSet", name)["metadata"]["name"]
    own = {"matchLabels": {"jobset.sigs.k8s.io/jobset-name": run}}
    assert policy["spec"]["podSelector"] == own and set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    assert policy["spec"]["ingress"] == [{"from": [{"podSelector": own}]}]
    among, names = policy["spec"]["egress"]
    assert among == {"to": [{"podSelector": own}]}
    assert names["ports"] == [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]
    system = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}
    assert names["to"] == [system, {"ipBlock": {"cidr": "169.254.0.0/16"}}]


def test_without_a_launch_no_pod_speaks_with_anybody():
    assert only("NetworkPolicy", "common")["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


@pytest.mark.parametrize("name", LAUNCHES)
def test_pods_wait_for_hosts_and_leave_when_told(name):
    (waiting,) = pod(only("JobSet", name))["initContainers"]
    *shell, script = waiting["command"]
    host = "race-mimic-host-0-$i.race-mimic"
    assert script.count(host) == 1
    found = subprocess.run([*shell, script.replace(host, "localhost")], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0 and len(found.stdout.splitlines()) >= 2
    waits = subprocess.Popen([*shell, script.replace(host, "not a name")])
    try:
        time.sleep(1)
        assert waits.poll() is None
        waits.send_signal(signal.SIGTERM)
        assert waits.wait(timeout=60) == processes.PREEMPTED
    finally:
        waits.kill()
        waits.wait()


# --------------------------------------------------------------------------------------------------- how a launch ends


def matched(policy: dict, status: int, disrupted: bool) -> tuple[int, dict] | None:
    """The first rule of a podFailurePolicy that a pod falls under which ended so, and its number."""
    for number, rule in enumerate(policy["rules"]):
        codes = rule.get("onExitCodes")
        if codes and codes["operator"] == "In" and status in codes["values"]:
            return number, rule
        if disrupted and {"type": "DisruptionTarget", "status": "True"} in rule.get("onPodConditions", ()):
            return number, rule
    return None


def outcome(jobset: dict, status: int, disrupted: bool = False) -> str:
    """What JobSet does when a pod ends so: the Job is given a reason and a message, and the first rule of the failurePolicy that takes both says."""
    found = matched(job(jobset)["podFailurePolicy"], status, disrupted)
    if found:
        number, rule = found
        assert rule["action"] == "FailJob"
        name = f"cxr-jax/{jobset['metadata']['name']}-host-0-0-x7d2k"
        how = f"Container cxr-jax for pod {name} failed with exit code {status}" if "onExitCodes" in rule else f"Pod {name} has condition DisruptionTarget"
        reason, message = "PodFailurePolicy", f"{how} matching FailJob rule at index {number}"
    else:
        assert job(jobset)["backoffLimit"] == 0
        reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    for rule in jobset["spec"]["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(re.search(pattern, message) for pattern in patterns):
            return rule["action"]
    return "RestartJobSet"


@pytest.mark.parametrize("name", LAUNCHES)
def test_what_a_status_leads_to(name):
    # The name of a run is part of every message.
    jobset = only("JobSet", name, RUN="failed-with-exit-code-75")
    for_ever, some_times, never = "RestartJobSetAndIgnoreMaxRestarts", "RestartJobSet", "FailJobSet"
    assert outcome(jobset, processes.PREEMPTED) == for_ever
    assert outcome(jobset, processes.FAILED) == never
    assert outcome(jobset, processes.LOST) == some_times
    for killed in (134, 137, 139, 143):
        assert outcome(jobset, killed) == some_times
    for taken_away in (processes.PREEMPTED, processes.FAILED, processes.LOST, 137):
        assert outcome(jobset, taken_away, disrupted=True) == for_ever
    assert 1 <= jobset["spec"]["failurePolicy"]["maxRestarts"] <= 10


def test_what_a_status_leads_to_in_prepare():
    policy = only("Job", "prepare")["spec"]["podFailurePolicy"]
    assert matched(policy, processes.PREEMPTED, False)[1]["action"] == "Ignore"
    assert matched(policy, 137, True)[1]["action"] == "Ignore"
    assert matched(policy, processes.FAILED, False)[1]["action"] == "FailJob"
    assert matched(policy, 137, False) is None and only("Job", "prepare")["spec"]["backoffLimit"] > 0


@pytest.mark.parametrize("name", ("gpu", "tpu", "prepare"))
def test_a_pod_hears_that_it_is_to_end_and_has_time_to_save(name):
    document = only("Job" if name == "prepare" else "JobSet", name)
    assert pod(document)["terminationGracePeriodSeconds"] >= 120 and pod(document)["restartPolicy"] == "Never"
    # The shell, which is the container's first process and would not hand the signal on, becomes the program.
    assert container(document)["command"][-1].splitlines()[-1].startswith("exec python -m cxr_jax.main ")


# ------------------------------------------------------------------------------------------------ what the program gets


@pytest.mark.parametrize("name", ("gpu", "tpu", "prepare"))
def test_the_program_gets_the_words_that_were_given(name, tmp_path):
    arguments = """--config=configs/race.py:mimic --config.dataset.raw_dir="/raw/a release" --config.audit.attributes="('race', 'sex')" """
    *shell, script = container(only("Job" if name == "prepare" else "JobSet", name, ARGS=arguments))["command"]
    (tmp_path / "python").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "python").chmod(0o755)
    printed = subprocess.run([*shell, script], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True).stdout.splitlines()
    own = ["--config=configs/race.py:mimic", "--config.dataset.raw_dir=/raw/a release", "--config.audit.attributes=('race', 'sex')"]
    expected = [*own, "--config.stages=('prepare',)"] if name == "prepare" else ["--distributed", *own]
    assert printed == ["-m", "cxr_jax.main", "--workdir=/runs/race-mimic", *expected]


@pytest.mark.parametrize("name, number", PODS)
def test_what_is_written_has_a_volume(name, number):
    document = documents(name)[number]
    mounts = {mount["mountPath"]: mount for mount in container(document)["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod(document)["volumes"]}
    assert {mount["name"] for mount in mounts.values()} == volumes.keys()
    claims = {claim["metadata"]["name"]: claim["spec"] for claim in documents("common") if claim["kind"] == "PersistentVolumeClaim"}
    for volume in volumes.values():
        assert volume.keys() - {"name"} <= {"persistentVolumeClaim", "emptyDir"}
        if "persistentVolumeClaim" in volume:
            assert claims[volume["persistentVolumeClaim"]["claimName"]]["accessModes"] == ["ReadWriteMany"]
    assert "emptyDir" in volumes[mounts["/tmp"]["name"]]  # HOME, by the Dockerfile
    runs = mounts["/runs"]
    assert volumes[runs["name"]]["persistentVolumeClaim"]["claimName"] == "cxr-jax-runs" and bool(runs.get("readOnly")) == (name == "look")
    if name != "look":
        assert not mounts["/data"].get("readOnly")
        assert mounts["/raw"].get("readOnly") and volumes["raw"]["persistentVolumeClaim"].get("readOnly")
        for variable in ("TFDS_DATA_DIR", "JAX_COMPILATION_CACHE_DIR"):
            assert environment(document)[variable].startswith("/data/")


@pytest.mark.parametrize("name, resource, count", [("gpu", "nvidia.com/gpu", "8"), ("tpu", "google.com/tpu", "4")])
def test_a_pod_asks_for_all_that_a_node_has(name, resource, count):
    document = only("JobSet", name)
    resources = container(document)["resources"]
    assert resources["limits"][resource] == resources["requests"][resource] == count
    assert resources["limits"]["memory"] == resources["requests"]["memory"] and "cpu" in resources["requests"]
    assert {"key": resource, "operator": "Exists", "effect": "NoSchedule"} in pod(document)["tolerations"]
    assert environment(document)["JAX_PLATFORMS"].split(",")[0] == {"gpu": "cuda", "tpu": "tpu"}[name]
    if name == "tpu":
        topology = pod(document)["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
        assert math.prod(map(int, topology.split("x"))) == int(count) * job(document)["parallelism"]
    else:
        assert pod(only("JobSet", "gpu", GPU_POOL_LABEL="agentpool"))["nodeSelector"] == {"agentpool": "gpus"}


# ------------------------------------------------------------------------------------------------------------- security


@pytest.mark.parametrize("name, number", PODS)
def test_a_pod_can_do_no_more_than_it_has_to(name, number):
    spec = pod(documents(name)[number])
    assert spec["automountServiceAccountToken"] is False and spec["serviceAccountName"] == "cxr-jax" and spec["enableServiceLinks"] is False
    assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for one in (*spec.get("initContainers", ()), *spec["containers"]):
        can = spec["securityContext"] | one["securityContext"]
        assert can["allowPrivilegeEscalation"] is False and can["readOnlyRootFilesystem"] is True and "privileged" not in can
        if name == "tpu" and one["name"] == "cxr-jax":
            # The one that a TPU's driver needs to lock memory with, which it must be root to have.
            assert can["capabilities"] == {"drop": ["ALL"], "add": ["SYS_RESOURCE"]} and can["runAsGroup"] == 10001
        else:
            assert can["capabilities"] == {"drop": ["ALL"]} and can["runAsNonRoot"] is True and can["runAsUser"] == can["runAsGroup"] == 10001


@pytest.mark.parametrize("name", render.manifests())
def test_no_secret_no_host_path_no_way_in_and_one_namespace(name):
    for document in documents(name, NAMESPACE="elsewhere"):
        keys = {key for _, key in walk(document)}
        assert not keys & {"secret", "secretName", "secretKeyRef", "secretRef", "envFrom", "imagePullSecrets"}
        assert not keys & {"hostPath", "hostPort", "nodePort", "externalIPs"}
        assert document["kind"] in {"Namespace", "ServiceAccount", "PersistentVolumeClaim", "NetworkPolicy", "JobSet", "Job", "Pod"}
        metadata = document["metadata"]
        assert (metadata["name"] if document["kind"] == "Namespace" else metadata["namespace"]) == "elsewhere"


def test_the_namespace_enforces_what_pods_keep_to():
    assert only("Namespace", "common")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert only("ServiceAccount", "common")["automountServiceAccountToken"] is False


# ----------------------------------------------------------------------------------------- filling in, image, what is said


def test_every_parameter_is_used_and_every_one_used_is_there():
    used = {name for path in FOLDER.glob("*.yaml") for name in re.findall(r"\$\{([A-Z_]+)\}", path.read_text())}
    assert used == render.parameters().keys()


@pytest.mark.parametrize(
    "words, told",
    [
        ((), "name a manifest: common, gpu, look, prepare, tpu"),
        (("cpu",), "cpu: no such manifest"),
        (("gpu",), "RUN is empty: fill it in, in "),
        (("gpu", "RUN=a", "ARGS=b", "GPU_POOL=c"), "IMAGE is empty: fill it in, in "),
        (("gpu", "NODES=2"), "NODES: no such parameter; there are RUN, ARGS"),
        (("gpu", "RUN"), "'RUN' in the command line: not NAME=value"),
        (("look", "IMAGE=a\nb"), "IMAGE: a parameter is one line"),
        *(
            (("gpu", f"RUN={run}", "ARGS=b", "GPU_POOL=c", "IMAGE=d"), f"RUN={run}: pods and hosts are named after it")
            for run in ("race_mimic", "2", "a-", "A", "a" * 46)
        ),
        *((("tpu", "RUN=a", "ARGS=b", "IMAGE=d", word), "TPU_TOPOLOGY=") for word in ("TPU_HOSTS=2", "TPU_TOPOLOGY=8", "TPU_CHIPS=all")),
    ],
)
def test_a_mistake_is_one_line_and_nothing_to_apply(words, told):
    done = subprocess.run([sys.executable, FOLDER / "render.py", *words], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "" and done.stderr.startswith(f"error: {told}") and done.stderr.count("\n") == 1


def test_the_longest_name_of_a_run_is_one_of_hosts():
    jobset = only("JobSet", "gpu", RUN="a" * 45, GPU_HOSTS="9999")
    assert len(f"{jobset['metadata']['name']}-{jobset['spec']['replicatedJobs'][0]['name']}-0-9998-x7d2k") <= 63


def test_the_image_has_the_program_and_nothing_of_its_users():
    lines = [line for line in (FOLDER / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0].startswith("ARG BASE=") and lines[1] == "FROM ${BASE}" and lines[-1] == "USER 10001:10001"
    assert "://" not in "".join(lines)
    sources = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
    assert sources == {"requirements.txt", "requirements-${ACCELERATOR}.txt", "cxr_jax", "configs", "tfds_builders"}
    assert all((ROOT / source.replace("${ACCELERATOR}", accelerator)).exists() for source in sources for accelerator in ("cuda", "tpu"))
    shown = {line[1:] for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert shown == {"requirements*.txt", "cxr_jax", "configs", "tfds_builders"}


def test_the_commands_of_the_page_give_manifests():
    commands = re.findall(r"^python (launch/kubernetes/render\.py .*?) \|", (ROOT / "docs/kubernetes.md").read_text(), re.MULTILINE)
    shown = set()
    for command in commands:
        _, name, *words = shlex.split(command)
        shown.add(name)
        for document in documents(name, **dict(word.split("=", 1) for word in words)):
            check(document)
    assert shown == set(render.manifests())
