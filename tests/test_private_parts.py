"""What we use of a package although the package keeps it for itself.

Such a part may change in any release, and what fails then seldom says so. Therefore each is used in one file of ours,
each is looked at here, and pyproject.toml keeps its package below the next minor release. Whoever raises a bound there
is told here what has changed.
"""

import ast
import importlib
import importlib.metadata
import inspect
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version
from torch import nn

ROOT = Path(__file__).parent.parent
FOLDERS = ("platform", "search_spaces", "trainers", "cluster", "benchmarks")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))] + [ROOT / "cluster.yaml"]
OURS = {str(path.relative_to(ROOT)): path.read_text() for path in FILES}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = {requirement.name: requirement for requirement in map(Requirement, PROJECT["dependencies"])}

Check = Callable[[Any], str]
"""Says what is wrong with a part; nothing if it is as we rely on."""


@dataclass(frozen=True)
class Part:
    """Something that a package keeps for itself."""

    path: str
    check: Check
    word: str = ""
    """What our file calls it, if not by the last word of its path."""
    reader: str = ""
    """The package's own function that looks it up, where we put something else in its place."""

    @property
    def package(self) -> str:
        return self.path.partition(".")[0].replace("_", "-")

    @property
    def files(self) -> list[str]:
        """Ours that use it."""
        word = self.word or self.path.rpartition(".")[2]
        return [name for name, text in OURS.items() if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text)]

    def fault(self) -> str:
        """What is wrong with it, in words."""
        try:
            part = find(self.path)
        except (ImportError, AttributeError):
            return "is not there"
        if self.reader and self.path.rpartition(".")[2] not in names_in(find(self.reader).__code__):
            return f"is no longer what {self.reader} looks up"
        return self.check(part)


def find(path: str) -> Any:
    """Import a module, or what is in one, by its dotted path."""
    holder, _, name = path.rpartition(".")
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        return getattr(find(holder), name)


def names_in(code: CodeType) -> set[str]:
    """Every name that a function looks up, also in the functions inside it."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*map(names_in, inner))


def there(part: Any) -> str:
    return ""


def taking(*names: str) -> Check:
    """Whether it takes parameters of these names, in this order."""

    def check(part: Any) -> str:
        parameters = list(inspect.signature(part).parameters)
        known = [name for name in parameters if name in names]
        return "" if known == list(names) else f"takes {parameters}, not {list(names)}"

    return check


def being(value: object) -> Check:
    return lambda part: "" if part == value else f"is {part!r}, not {value!r}"


def of_type(kind: type) -> Check:
    return lambda part: "" if isinstance(part, kind) else f"is a {type(part).__name__}, not a {kind.__name__}"


def having(*names: str, of: Callable[[Any], Any] = lambda part: part) -> Check:
    """Whether it, or what is made `of` it, has these attributes."""

    def check(part: Any) -> str:
        lacking = [name for name in names if not hasattr(of(part), name)]
        return f"has no {', '.join(lacking)}" if lacking else ""

    return check


def using(*names: str) -> Check:
    """Whether a function looks these names up."""

    def check(part: Any) -> str:
        lacking = set(names) - names_in(part.__code__)
        return f"uses no {', '.join(sorted(lacking))}" if lacking else ""

    return check


def saying(text: str) -> Check:
    """Whether its source has these words."""
    return lambda part: "" if text in inspect.getsource(part) else f"does not say {text!r} any more"


def making(expected: list[float], *arguments: Any) -> Check:
    """Whether it makes these numbers of 1 and 2, in a list of one tensor."""

    def check(part: Any) -> str:
        values = torch.tensor([1.0, 2.0])
        part([values], *arguments)
        return "" if values.tolist() == expected else f"makes {values.tolist()} of [1, 2], not {expected}"

    return check


def small_unet(kind: Any) -> Any:
    types = {"down_block_types": ["AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D"]}
    return kind(sample_size=8, block_out_channels=[8], norm_num_groups=4, num_class_embeds=2, dropout=0.1, **types)


def module_of_unet(name: str) -> Check:
    """Whether a U-Net has a module of this name."""

    def check(kind: Any) -> str:
        names = [name for name, _ in small_unet(kind).named_modules()]
        return "" if name in names else f"has no {name}"

    return check


def dropping_by_nn(kind: Any) -> str:
    kinds = {type(module) for module in small_unet(kind).modules()}
    return "" if nn.Dropout in kinds else "has no nn.Dropout that could be replaced"


def counting_by_path(kind: Any) -> str:
    counter = kind(display=False)
    with counter:
        nn.Sequential(nn.Linear(2, 2))(torch.zeros(1, 2))
    counts = counter.get_flop_counts()
    return "" if "Sequential.0" in counts else f"counts for {sorted(counts)}, not for Sequential.0"


def without_content(kind: Any) -> str:
    with kind(allow_non_fake_inputs=True):
        tensor = torch.ones(2) + torch.empty(2**50)[:2]  # a petabyte
    return "" if tensor.untyped_storage().nbytes() == 8 else "makes no tensors without content"


def listing(leaves: Callable[[Any], list[Any]]) -> str:
    found = leaves([1, {"a": (2,)}])
    return "" if found == [1, 2] else f"lists {found}"


RAY = "ray._private"
ACTORS = "ray.air.execution._internal.RayActorManager"
CONTROLLER = "ray.tune.execution.tune_controller"
TORCH_BACKEND = "ray.train.torch.config._TorchBackend"
JOURNAL = "optuna.storages.journal"
ARTIFACTS = "mlflow.store.artifact.local_artifact_repo.LocalArtifactRepository"
REGISTRY = "mlflow.store.artifact.artifact_repository_registry._artifact_repository_registry"
UNET = "diffusers.models.unets.unet_2d.UNet2DModel"
BLOCKS = "diffusers.models.unets.unet_2d_blocks"
CLIP = "torch_fidelity.feature_extractor_clip"
DINO = "torch_fidelity.feature_extractor_dinov2"
DTYPE = "feature_extractor_internal_dtype"

PARTS = [
    # Ray on one machine: it is quiet, on loopback only, and watched.
    Part(f"{RAY}.worker.print_to_stdstream", there, reader=f"{RAY}.worker.listen_error_messages"),
    Part(f"{RAY}.ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR", of_type(str)),
    Part(f"{RAY}.ray_constants.ENABLE_RAY_CLUSTER", of_type(bool), reader=f"{RAY}.services.get_node_ip_address"),
    Part(f"{RAY}.ray_constants.GCS_PORT_ENVIRONMENT_VARIABLE", being("RAY_GCS_SERVER_PORT"), "RAY_GCS_SERVER_PORT"),
    Part(f"{RAY}.node", saying("timed out during startup"), "timed out during startup"),
    Part(f"{RAY}.worker._global_node", there),
    Part(f"{RAY}.node.Node", saying("self.all_processes"), "all_processes"),
    Part(f"{RAY}.services.ProcessInfo", having("process"), "entry.process"),
    Part(f"{RAY}.ray_constants.PROCESS_TYPE_GCS_SERVER", being("gcs_server"), "gcs_server"),
    Part(f"{RAY}.ray_constants.PROCESS_TYPE_RAYLET", being("raylet"), '"raylet"'),
    Part(f"{RAY}.accelerators.NvidiaGPUAcceleratorManager.get_current_node_num_accelerators", taking()),
    # A Ray cluster, its nodes and jobs.
    Part("ray._common.utils.get_ray_address_file", saying('"ray_current_cluster"'), "ray_current_cluster"),
    Part("ray._common.constants.HEAD_NODE_RESOURCE_NAME", being("node:__internal_head__"), "node:__internal_head__"),
    Part(f"{RAY}.services", saying("--min_worker_port="), "min_worker_port"),
    Part(f"{RAY}.services", saying("--max_worker_port="), "max_worker_port"),
    Part(f"{RAY}.runtime_env.constants.RAY_JOB_CONFIG_JSON_ENV_VAR", being("RAY_JOB_CONFIG_JSON_ENV_VAR")),
    Part("ray.dashboard.modules.job.sdk.logger.name", being("ray.dashboard.modules.job.sdk"), "modules.job.sdk"),
    Part("ray.autoscaler._private.constants.AUTOSCALER_NODE_START_WAIT_S", of_type(int)),
    # Ray Tune and Train.
    Part(ACTORS, of_type(type)),
    Part(f"{ACTORS}.remove_actor", taking("self", "tracked_actor", "kill", "stop_future")),
    Part(f"{ACTORS}._actor_task_failed", taking("self", "tracked_actor_task", "exception")),
    Part(f"{CONTROLLER}.RayActorManager", of_type(type), reader=f"{CONTROLLER}.TuneController.__init__"),
    Part(
        "ray.tune.execution.experiment_state.logger.name",
        being("ray.tune.execution.experiment_state"),
        "experiment_state",
    ),
    Part(f"{CONTROLLER}.TrialRunnerWrapper.__init__", using("_tune_controller"), "_tune_controller"),
    Part(f"{CONTROLLER}.TuneController.__init__", using("_staged_trials"), "_staged_trials"),
    Part(f"{CONTROLLER}.TuneController._unstage_trial_with_resources", taking("self", "trial")),
    Part(f"{CONTROLLER}.TuneController._schedule_trial_stop", taking("self", "trial", "exception")),
    Part(f"{CONTROLLER}.TuneController._schedule_trial_stop", using("_trial_to_actor"), "_trial_to_actor"),
    Part(f"{CONTROLLER}.TuneController._schedule_trial_stop", using("_actor_manager"), "_actor_manager"),
    Part(f"{CONTROLLER}.TuneController._set_trial_status", taking("self", "trial", "status")),
    Part("ray.tune.tune.logger.name", being("ray.tune.tune"), "ray.tune.tune"),
    Part(TORCH_BACKEND, of_type(type)),
    Part(f"{TORCH_BACKEND}.on_start", taking("self", "worker_group", "backend_config")),
    Part("ray.train._internal.base_worker_group.BaseWorkerGroup.execute_single", there),
    Part("ray.train.v2._internal.execution.failure_handling.default.RETRYABLE_CONTROLLER_ERRORS", of_type(tuple)),
    Part("ray.train.torch.TorchConfig.backend_cls", of_type(property)),
    Part(
        "ray.train.v2._internal.exceptions.UserExceptionWithTraceback",
        having("_base_exc", of=lambda kind: kind(ValueError(), "")),
        "_base_exc",
    ),
    Part(
        "ray.train.v2._internal.constants.ENABLE_PREEMPTION_WATCHER_ENV_VAR",
        being("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"),
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER",
    ),
    # Optuna: how a trial is found again, and what a killed process leaves beside its journal.
    Part("optuna.trial.Trial", taking("study", "trial_id"), "optuna.trial.Trial(self._study"),
    Part("optuna.trial.create_trial", having("_trial_id", of=lambda create: create(value=0.0)), "_trial_id"),
    Part(f"{JOURNAL}.JournalFileBackend.append_logs", taking("self", "logs")),
    Part(f"{JOURNAL}._file.LOCK_FILE_SUFFIX", being(".lock"), "{journal.name}.lock"),
    # What benchmarks need of Optuna, and of Ray's adapter to it.
    Part("optuna._hypervolume.compute_hypervolume", taking("loss_vals", "reference_point")),
    Part("ray.tune.search.optuna.OptunaSearch.suggest", using("_ot_trials"), "_ot_trials"),
    # MLflow's server, which keeps artifacts in its own folder only.
    Part(REGISTRY, of_type(object)),
    Part(f"{REGISTRY}._registry", of_type(dict)),
    Part(f"{REGISTRY}.register", taking("scheme", "repository"), "registry.register"),
    Part(f"{ARTIFACTS}.artifact_dir", of_type(property)),
    Part(f"{ARTIFACTS}._get_or_create_artifact_dir", taking("self", "artifact_path")),
    Part(f"{ARTIFACTS}.get_local_path", taking("self", "artifact_path")),
    Part(f"{ARTIFACTS}.list_artifacts", taking("self", "path")),
    Part(f"{ARTIFACTS}.delete_artifacts", taking("self", "artifact_path")),
    Part(
        "mlflow.store.tracking.sqlalchemy_store.SqlAlchemyStore.create_experiment",
        taking("self", "name", "artifact_location"),
        "SqlAlchemyStore.create_experiment",
    ),
    Part("mlflow.server.fastapi_app.app", having("__call__"), "fastapi_app.app"),
    Part("mlflow.server.ARTIFACTS_DESTINATION_ENV_VAR", of_type(str)),
    # diffusers' U-Net, which is run block by block, with other dropout and other first weights.
    Part(UNET, module_of_unet("time_proj"), "time_proj"),
    Part(UNET, module_of_unet("time_embedding"), "unet.time_embedding"),
    Part(UNET, module_of_unet("class_embedding"), "unet.class_embedding"),
    Part(UNET, module_of_unet("conv_in"), "conv_in"),
    Part(UNET, module_of_unet("conv_norm_out"), "conv_norm_out"),
    Part(UNET, module_of_unet("conv_act"), "conv_act"),
    Part(UNET, module_of_unet("conv_out"), "conv_out"),
    Part(UNET, module_of_unet("down_blocks.0"), "down_blocks"),
    Part(UNET, module_of_unet("mid_block"), "mid_block"),
    Part(UNET, module_of_unet("up_blocks.0"), "up_blocks"),
    Part(UNET, module_of_unet("up_blocks.0.resnets"), "block.resnets"),
    Part(UNET, module_of_unet("mid_block.resnets.0.conv2"), "conv2"),
    Part(UNET, module_of_unet("mid_block.attentions.0.to_out.0"), "to_out"),
    Part("diffusers.models.attention_processor.Attention", taking("residual_connection"), "residual_connection"),
    Part(UNET, dropping_by_nn, "named_children"),
    Part(f"{BLOCKS}.AttnDownBlock2D.forward", taking("self", "hidden_states", "temb"), "down_blocks"),
    Part(f"{BLOCKS}.DownBlock2D.forward", taking("self", "hidden_states", "temb"), "down_blocks"),
    Part(f"{BLOCKS}.UNetMidBlock2D.forward", taking("self", "hidden_states", "temb"), "mid_block"),
    Part(
        f"{BLOCKS}.AttnUpBlock2D.forward",
        taking("self", "hidden_states", "res_hidden_states_tuple", "temb"),
        "up_blocks",
    ),
    Part(
        f"{BLOCKS}.UpBlock2D.forward", taking("self", "hidden_states", "res_hidden_states_tuple", "temb"), "up_blocks"
    ),
    # torch: one step for a whole list of tensors, and FLOPs by the path of a module.
    Part("torch._foreach_add_", making([2.0, 4.0], [torch.tensor([1.0, 2.0])])),
    Part("torch._foreach_mul_", making([3.0, 6.0], 3.0)),
    Part("torch._foreach_copy_", making([3.0, 2.0], [torch.tensor([3.0, 2.0])])),
    Part("torch._foreach_lerp_", making([2.0, 2.0], [torch.tensor([3.0, 2.0])], 0.5)),
    Part("torch._foreach_zero_", making([0.0, 0.0])),
    Part("torch.utils.flop_counter.FlopCounterMode", counting_by_path, "get_flop_counts"),
    # torch: tensors without content, of which what is allocated is followed.
    Part("torch._subclasses.fake_tensor.FakeTensorMode", without_content),
    Part("torch.utils._python_dispatch.TorchDispatchMode", having("__torch_dispatch__")),
    Part("torch.utils._pytree.tree_leaves", listing),
    # torch: whether a number that a layer holds is a reason to compile again when it changes.
    Part("torch._dynamo.config.allow_unspec_int_on_nn_module", of_type(bool)),
    # torch-fidelity: extractors without their own way to load weights, and scores from features alone.
    Part("torch_fidelity.feature_extractor_base.FeatureExtractorBase", taking("name", "features_list")),
    Part(f"{CLIP}.FeatureExtractorCLIP.forward", using("model", "resolution", DTYPE), "FeatureExtractorCLIP"),
    Part(f"{CLIP}.build_model", taking("state_dict", DTYPE)),
    Part(f"{CLIP}.Transformer", taking("width", "layers", "heads", "attn_mask"), "import Transformer"),
    Part(f"{CLIP}.MODEL_URLS", of_type(dict)),
    Part(f"{CLIP}.MODEL_METADATA", of_type(dict)),
    Part(f"{DINO}.FeatureExtractorDinoV2.forward", using("model", DTYPE), "FeatureExtractorDinoV2"),
    Part("torch_fidelity.feature_extractor_inceptionv3.URL_INCEPTION_V3", of_type(str)),
    Part("torch_fidelity.metric_fid.fid_features_to_statistics", taking("features")),
    Part("torch_fidelity.metric_isc.isc_features_to_metric", taking("feature")),
    Part("torch_fidelity.metric_kid.kid_features_to_metric", taking("features_1", "features_2", "kwargs")),
]
SETTINGS = ("Image.MAX_IMAGE_PIXELS", "tempfile.tempdir", "torch.backends.cudnn.benchmark")
"""What is documented as something to set."""
ELSEWHERE = ("benchmarks/search/tables.py: _dataset",)
"""Parts of packages that only the environment of `make bench-search` has: the tables are read from them once."""
PACKAGES = sorted({part.package for part in PARTS})


@pytest.mark.parametrize("part", PARTS, ids=lambda part: f"{part.path}-{part.word}")
def test_a_private_part_is_what_one_file_of_ours_relies_on(part):
    assert len(part.files) == 1, f"{part.path} ({part.word}): used in {part.files}, and not in one file of ours"
    fault = part.fault()
    version = importlib.metadata.version(part.package)
    assert not fault, f"{part.package} {version}: {part.path} {fault}; {part.files[0]} relies on it"


def test_a_part_that_is_gone_is_told_with_its_package_and_our_file():
    gone = Part("ray._private.worker.no_such_part", there, word="_global_node")
    with pytest.raises(
        AssertionError, match=r"ray [0-9.]+: ray._private.worker.no_such_part is not there; platform/.*py relies"
    ):
        test_a_private_part_is_what_one_file_of_ours_relies_on(gone)


def test_every_private_name_in_our_code_is_a_part_that_is_looked_at():
    told = " ".join(f"{part.path} {part.word}" for part in PARTS)
    unknown = [
        f"{file}: {name}"
        for file, text in OURS.items()
        if file.endswith(".py")
        for name in foreign_names(ast.parse(text))
        if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", told)
    ]
    assert set(unknown) == set(ELSEWHERE), "list them in PARTS"


def foreign_names(tree: ast.Module) -> Iterator[str]:
    """Names that code takes from elsewhere although they begin with an underscore, and those that it sets there."""
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = {(alias.asname or alias.name).partition(".")[0] for node in imports for alias in node.names}
    for node in imports:
        if isinstance(node, ast.ImportFrom) and not str(node.module).startswith(("scrimp_", "__")):
            path = [*str(node.module).split("."), *(alias.name for alias in node.names)]
            yield from (name for name in path if name.startswith("_") and not name.endswith("__"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            holder = ast.unparse(node.value)
            private = re.match("_[a-z]", node.attr) and node.attr not in own and holder not in ("self", "cls", "os")
            replaced = isinstance(node.ctx, ast.Store) and holder.partition(".")[0] in imported
            if private or (replaced and f"{holder}.{node.attr}" not in SETTINGS):
                yield node.attr


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_of_which_a_private_part_is_used_stays_below_its_next_minor_release(package):
    lock = (ROOT / "requirements.lock").read_text()
    [locked] = re.findall(rf"^{package}==([0-9.]+)", lock, re.MULTILINE)
    major, minor = Version(locked).release[:2]
    specifier = REQUIREMENTS[package].specifier
    assert specifier.contains(locked)
    assert not specifier.contains(f"{major}.{minor + 1}"), f"{package}: pyproject.toml lets {major}.{minor + 1} in"


def test_no_other_package_is_bounded():
    assert [name for name, requirement in REQUIREMENTS.items() if "<" in str(requirement.specifier)] == PACKAGES
