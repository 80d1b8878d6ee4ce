"""What must hold between the keys of a task file; the limits of single keys stand beside them."""

from collections.abc import Iterator, Mapping
from typing import Any

from downstream_tasks.config import SIGNAL_PROTOCOLS, DownstreamConfig
from downstream_tasks.features.registry import REGISTRY, explain_names, names_of
from downstream_tasks.scoring.metrics import main_metric_names
from downstream_tasks.signal.baselines import names_in
from src.utils.errors import UserError, nearest
from src.utils.yaml_config import Relation, check_relations, from_dict


def task_from_dict(values: Mapping[str, Any], where: str) -> DownstreamConfig:
    """Build and check a :class:`DownstreamConfig`; ``where`` names the source in messages."""
    config = from_dict(DownstreamConfig, values, where)
    if not config.data.data_path:
        raise UserError(
            f"{where}: data.data_path is missing: the data-set folder to evaluate on. A file of "
            "settings alone is laid over a task: --data_make_fn hca_sex --config FILE."
        )
    without_target = ("fingerprint", *SIGNAL_PROTOCOLS)
    if not config.data.target and config.protocol not in without_target:
        raise UserError(f"{where}: data.target is missing: the column to predict.")
    check_relations(config, _relations(config), where)
    return config


def _relations(config: DownstreamConfig) -> Iterator[Relation]:
    for rules in (
        _of_data,
        _of_adjustment,
        _of_split,
        _of_features,
        _of_studies,
        _of_few_shot,
        _of_training,
        _of_signal,
    ):
        yield from rules(config)


def _of_data(config: DownstreamConfig) -> Iterator[Relation]:
    """Target, classes, sampling in time."""
    data = config.data
    of_protocol = {"logistic": "classification", "ridge": "regression", "cox": "survival"}
    needed_type = of_protocol.get(config.protocol)
    type_of_protocol = f"{needed_type} with protocol {config.protocol}"
    yield Relation(needed_type in (None, data.type), "data.type", type_of_protocol)
    survival = data.type == "survival"
    yield Relation(
        config.protocol == "cox" or not survival,
        "protocol",
        "cox with data.type survival: no other head is fitted to people who were not seen to the "
        "event (data.horizon makes classes of them)",
    )
    yield Relation(not (survival and data.classes), "data.classes", "empty with data.type survival")
    yield Relation(
        len({*map(str, data.classes)}) == len(data.classes), "data.classes", "each label once"
    )
    yield Relation(len(data.classes) != 1, "data.classes", "two labels or more")
    fewest = 2 if data.type == "classification" else 1  # the release's regression scripts pass 1
    yield Relation(
        data.nb_classes is None or data.nb_classes >= fewest, "data.nb_classes", f">= {fewest}"
    )
    for key in ("time", "event"):
        yield Relation(
            bool(getattr(data, key)) == (data.horizon is not None or survival),
            f"data.{key}",
            "a column with data.horizon or data.type survival, empty without",
        )
    two_classes = data.type == "classification" and len(data.classes) in (0, 2)
    yield Relation(
        data.horizon is None or two_classes, "data.horizon", "unset but for two data.classes"
    )
    given = [k for k in ("downsample", "stride", "target_tr") if getattr(data, k) is not None]
    first, last = (given[0], given[-1]) if given else ("", "stride")
    yield Relation(len(given) < 2, f"data.{last}", f"unset beside {first}")


def _of_split(config: DownstreamConfig) -> Iterator[Relation]:
    """Who is tested."""
    split = config.split
    yield Relation(
        (split.source == "site") == (split.site is not None),
        "split.site",
        "the column that names the site with split.source site, and unset without",
    )
    yield Relation(
        not (split.in_folds and split.file), "split.file", f"unset with split.source {split.source}"
    )
    yield Relation(
        not (split.in_folds and split.resample),
        "split.resample",
        f"false with split.source {split.source}: cv draws new folds for every seed by itself",
    )


def _of_features(config: DownstreamConfig) -> Iterator[Relation]:
    """The metric, and the names of what stands in the table."""
    data = config.data
    metrics = main_metric_names(data.type, len(data.classes) or data.nb_classes or 2)
    yield Relation(
        config.metric in metrics,
        "evaluation.metric",
        f"{', '.join(metrics)}{nearest(config.metric, metrics).rstrip('.')}",
    )
    for key, kinds in (
        ("level", ("readout",)),
        ("readouts", ("readout",)),
        ("baselines", ("baseline", "control")),
    ):
        value, allowed = getattr(config.evaluation, key), names_of(*kinds)
        names = (value,) if isinstance(value, str) else value
        yield Relation({*names} <= {*allowed}, f"evaluation.{key}", explain_names(names, allowed))
    baselines, known = config.evaluation.baselines, names_of("baseline")
    with_features = [name for name in known if REGISTRY[name].reads not in ("nothing", "encoder")]
    stack = config.evaluation.stack
    yield Relation(
        {*stack} <= {*with_features}, "evaluation.stack", explain_names(stack, with_features)
    )
    of_events = [name for name in known if REGISTRY[name].reads == "patch"]
    yield Relation(
        data.unit == "event" or not {*of_events} & {*baselines},
        "evaluation.baselines",
        f"{', '.join(of_events)} of events only",
    )
    fitted = [name for name in known if REGISTRY[name].fitted]
    yield Relation(
        config.protocol != "fingerprint" or not {*fitted} & {*baselines},
        "evaluation.baselines",
        f"{' and '.join(fitted)} with training people, whom fingerprint does not have",
    )


def _of_studies(config: DownstreamConfig) -> Iterator[Relation]:
    """What fits heads again and again."""
    evaluation, n_runs = config.evaluation, config.evaluation.num_seed
    frozen = config.protocol not in ("fine_tune", "fingerprint")
    for key, off, sets in (
        ("n_permutations", "0", evaluation.n_permutations),
        ("train_sizes", "empty", len(evaluation.train_sizes) * evaluation.train_draws),
    ):
        why = "which fits nothing"
        if config.protocol == "fine_tune":
            why = f"which would train {sets} x {n_runs} networks; a frozen protocol fits heads only"
        yield Relation(
            frozen or not sets, f"evaluation.{key}", f"{off} with {config.protocol}, {why}"
        )


def _of_few_shot(config: DownstreamConfig) -> Iterator[Relation]:
    """Few labelled events, and settings that nothing is chosen by."""
    evaluation, heads, split = config.evaluation, config.heads, config.split
    _, grid = config.grid
    fixed = heads.selection == "fixed"
    yield Relation(
        not fixed or config.protocol in ("logistic", "ridge", "cox", "knn"),
        "heads.selection",
        f"cv or valid with protocol {config.protocol}",
    )
    yield Relation(
        not fixed or len(grid) == 1,
        "heads.selection",
        f"cv or valid with several values of a setting (they are {', '.join(map(str, grid))})",
    )
    stacked = {*evaluation.stack} & {*evaluation.baselines}
    yield Relation(
        not (fixed and stacked),
        "evaluation.stack",
        "empty with heads.selection fixed: the model's share is chosen, as a setting is",
    )
    if not evaluation.few_shot.events:
        return
    few = "with evaluation.few_shot"
    yield Relation(config.data.unit == "event", "data.unit", f"event {few}")
    yield Relation(config.protocol in ("logistic", "knn"), "protocol", f"logistic or knn {few}")
    yield Relation(
        fixed,
        "heads.selection",
        f"fixed {few} (and one value of its grid): so few events cannot choose a setting, and the "
        "validation people have no labels",
    )
    one_split = not (split.in_folds or split.resample)
    yield Relation(one_split, "split.source", f"folder, or random without split.resample, {few}")
    yield Relation(
        evaluation.num_seed == 1, "evaluation.num_seed", f"1 {few}, whose draws are the runs"
    )
    yield Relation(
        not evaluation.train_sizes, "evaluation.train_sizes", f"empty {few}, which says how many"
    )


def _of_training(config: DownstreamConfig) -> Iterator[Relation]:
    """What is trained by gradient."""
    published = (config.protocol, config.linear_probe.recipe) == ("linear_probe", "published")
    yield Relation(
        not (published and config.evaluation.level != "pooled"),
        "evaluation.level",
        "pooled, which the published linear probe reads; others with linear_probe.recipe=grid",
    )
    for name in ("fine_tune", "linear_probe", "attentive_probe"):
        section = getattr(config, name)
        yield Relation(
            section.warmup_epochs <= section.epochs, f"{name}.warmup_epochs", "0 to epochs"
        )


def _of_signal(config: DownstreamConfig) -> Iterator[Relation]:
    """Baselines that the protocol has, and what one of the two alone reads."""
    protocol, signal = config.protocol, config.signal
    if protocol not in SIGNAL_PROTOCOLS:
        return
    known = list(names_in(protocol))
    names = signal.baselines or ()
    yield Relation({*names} <= {*known}, "signal.baselines", explain_names(names, known))
    learning = names_in(protocol, learning=True)
    there = [name for name in learning if name in (signal.baselines or learning)]
    stack = signal.stack or ()
    yield Relation({*stack} <= {*there}, "signal.stack", explain_names(stack, there))
    yield Relation(
        protocol == "imputation" or signal.hidden == "random",
        "signal.hidden",
        "unset with protocol forecast, which hides the last frames of all ROIs (signal.frames)",
    )
    yield Relation(
        protocol == "forecast" or signal.frames is None,
        "signal.frames",
        "unset with protocol imputation, which hides ROIs at all times (signal.hidden)",
    )
    yield Relation(
        config.data.short_runs != "pad",
        "data.short_runs",
        "skip or error: the zeros at the end of a padded clip would be signal that is asked for",
    )


def _of_adjustment(config: DownstreamConfig) -> Iterator[Relation]:
    """Confounds and harmonisation."""
    data, split = config.data, config.split
    # Features that were adjusted by the label of a test person tell it.
    label = {data.target, data.time, data.event}
    harmonize = (data.harmonize,) if data.harmonize else ()
    adjusted_by = {
        "confounds": data.confounds,
        "harmonize": harmonize,
        "harmonize_keep": data.harmonize_keep,
    }
    for key, names in adjusted_by.items():
        columns = {name.removeprefix("C(").removesuffix(")").strip() for name in names}
        yield Relation(
            not label & columns,
            f"data.{key}",
            "other columns than data.target (and data.time, data.event), which is predicted",
        )
    yield Relation(
        config.protocol != "fingerprint" or not data.confounds,
        "data.confounds",
        "empty with protocol fingerprint, which has no training people to fit their effects on",
    )
    yield Relation(
        data.confounds_from == "features" or data.type == "regression",
        "data.confounds_from",
        "features for a classification: a class has no residual",
    )
    yield Relation(
        data.confounds_from == "features" or config.protocol != "fine_tune",
        "data.confounds_from",
        "features with protocol fine_tune, of whose rows only the baselines are corrected",
    )
    yield Relation(
        data.harmonize is None or split.source != "site",
        "data.harmonize",
        "unset with split.source site: the effect of a site that is left out cannot be learnt",
    )
    frozen = ("linear_probe", "logistic", "ridge", "cox", "knn")
    yield Relation(
        data.harmonize is None or config.protocol in frozen,
        "data.harmonize",
        f"unset with protocol {config.protocol}: ComBat is of feature tables ({', '.join(frozen)})",
    )
    yield Relation(
        data.harmonize is not None or not data.harmonize_keep,
        "data.harmonize_keep",
        "empty without data.harmonize",
    )
