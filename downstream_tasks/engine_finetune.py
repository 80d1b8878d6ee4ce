"""Fine-tuning of one seed: data, model, optimizer, resume, loop (method 7, 8.6, 8.8).

Everything random is a function of (seed, step, rank), so a resumed run goes on bit for bit.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm.contrib.logging import logging_redirect_tqdm

from downstream_tasks.adapters import add_adapters
from downstream_tasks.cohort.clips import ExampleClips, with_split_statistics
from downstream_tasks.cohort.problem import Problem, validation_score
from downstream_tasks.config import DownstreamConfig, FineTuneConfig
from downstream_tasks.features.controls import ShownAs
from downstream_tasks.features.registry import REGISTRY
from downstream_tasks.finetune_cost import TrainingCost
from downstream_tasks.finetune_state import BEST, StateFolder, effective_batch
from downstream_tasks.heads.result import HeadResult
from downstream_tasks.models_vit import fine_tuned_model
from src.datasets.micro_batches import MicroBatchSampler, NumberedSamples
from src.models.downstream_vit import DownstreamViT
from src.pretrained.encoder import Pretrained
from src.pretrained.load import load_pretrained
from src.utils.data_parallel import clear_gradients, data_parallel, no_sync
from src.utils.distributed import Ranks
from src.utils.errors import UserError
from src.utils.loading import batches_of
from src.utils.memory import Blocks, MemoryEstimate
from src.utils.person_ids import hash_ids
from src.utils.precision import autocast, has_bfloat16
from src.utils.progress import progress_bar
from src.utils.schedulers import WarmupCosine
from src.utils.signals import name_of, stop_requests
from src.utils.step_buffer import NonFiniteLoss, StepBuffer, StepRecord

logger = logging.getLogger(__name__)

Criterion = Callable[[Tensor, Tensor], Tensor]
Precision = Callable[[], AbstractContextManager]


def fine_tune(
    pretrained: Pretrained,
    problem: Problem,
    config: DownstreamConfig,
    ranks: Ranks,
    folder: Path,
    cost: TrainingCost,
    resume: bool = False,
    name: str = "model",
) -> HeadResult:
    """Train on the training people, keep the epoch that is best on validation, score the test.

    A control (``name``, of :mod:`features.registry`) differs from the model by the weights that it
    starts from or the clips that it is shown, in training, validation and test; by nothing else.

    Raises:
        SystemExit: if a signal asked to stop; ``folder`` then holds the state to resume from.
        UserError: too few people for a batch, a state of another run, a loss that is not finite.
    """
    # --------------------------------------------------------------------------------------- data
    ft, split, entry = config.fine_tune, problem.split, REGISTRY[name]
    pretrained = with_split_statistics(pretrained, config.data, problem.cohort, split.train)
    if entry.untrained:
        pretrained = without_pretraining(pretrained, problem.seed)
    clips = ExampleClips(
        problem.cohort, config.data, pretrained, "random", split.train, problem.seed
    )
    sampler = make_sampler(len(clips), ft, problem.seed, ranks)
    valid = evaluation_loader(split.valid, problem, config, pretrained, ranks, name)

    # -------------------------------------------------------------------------------------- model
    torch.manual_seed(problem.seed)
    model = DownstreamViT(
        pretrained.trainable_copy(
            drop_path_rate=ft.drop_path, gradient_checkpointing=ft.gradient_checkpointing
        ),
        max(1, problem.target.n_classes),
        patch=config.data.scored_patch if clips.has_events else None,
    )
    if ft.lora_rank:
        add_adapters(model, ft)
    model.to(ranks.device)
    criterion = make_criterion(problem, ft, ranks.device)
    precision = autocast(ranks.device, ft.use_bfloat16)

    if ranks.main:
        describe_memory(model, ft, ranks)

    # -------------------------------------------------------------------------- optimizer, resume
    optimizer = make_optimizer(model, ft)
    rate = make_schedule(ft, sampler.steps_per_epoch, effective_batch(config, ranks))
    n_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    states = StateFolder(folder, config, problem, pretrained, clips, ranks, name, n_trained)
    progress = states.start(model, optimizer, resume)
    cost.skip(progress.step)
    sampler.first_step = progress.step
    loader = DataLoader(
        NumberedSamples(clips),
        batch_sampler=sampler,
        num_workers=config.data.num_workers,
        pin_memory=ranks.device.type == "cuda",
        collate_fn=ShownAs(entry.function),
    )
    network = data_parallel(model, ranks, ft.accumulation_steps)

    # --------------------------------------------------------------------------------------- loop
    total_steps = ft.epochs * sampler.steps_per_epoch
    buffer = StepBuffer()
    bar = progress_bar(
        total=total_steps,
        initial=progress.step,
        unit="step",
        desc=f"fine-tune {'' if name == 'model' else name + ', '}{problem.name}",
        disable=not ranks.main,
    )
    with stop_requests() as stop, logging_redirect_tqdm(), bar, batches_of(loader) as batches:
        logger.info("the first step is running")
        counted, began = progress.step, time.monotonic()
        while progress.step < total_steps:
            step = progress.step + 1
            buffer.add(
                train_step(
                    step, batches, network, optimizer, rate(step), criterion, problem, ft,
                    precision, ranks,
                )
            )  # fmt: skip
            progress.step = step
            bar.update()
            stopping = ranks.max(stop.exit_code)
            epoch_ends = step % sampler.steps_per_epoch == 0
            if not (stopping or epoch_ends):
                continue
            try:
                rows = buffer.flush(ranks)
            except NonFiniteLoss as error:
                row_of_example = problem.cohort.examples["row"].to_numpy()
                runs = clips.dataset.folder.runs.loc[row_of_example[error.rows]]
                raise error.explained(runs, "lower --blr") from error
            progress.losses += [row["loss"] for row in rows]
            improved = False
            if epoch_ends:
                scores = predict(model, valid, len(problem.cohort.y), problem, precision, ranks)
                improved = progress.end_epoch(
                    *validate(scores, problem), rate(step), problem.metric
                )
                if ranks.main:
                    logger.info("%s, %s, %s", entry.title, problem.name, progress.summary())
                    bar.set_postfix(progress.history[-1], refresh=False)
            states.write(model, optimizer, progress, improved)
            cost.count(step - counted, time.monotonic() - began)
            counted, began = step, time.monotonic()
            if stopping and step < total_steps:
                logger.info(
                    "stopped by %s after step %d of %s, %s; go on with --resume",
                    name_of(stopping),
                    step,
                    name,
                    problem.name,
                )
                raise SystemExit(stopping)

    # --------------------------------------------------------------------------------------- test
    best = load_pretrained(folder / BEST, attn_mode=config.model.attn_mode)
    scores = score_test(best, problem, config, ranks)
    chosen = {"epoch": progress.best_epoch, f"valid_{problem.metric}": progress.best_score}
    return HeadResult(scores, chosen, progress.history, trained_parameters=n_trained)


def score_test(
    fine_tuned: Pretrained, problem: Problem, config: DownstreamConfig, ranks: Ranks
) -> np.ndarray:
    """Scores of the test examples by a fine-tuned checkpoint; NaN for everyone else.

    ``[n_examples, C]`` probabilities or ``[n_examples]`` standardised predictions.
    """
    fine_tuned = with_split_statistics(fine_tuned, config.data, problem.cohort, problem.split.train)
    model = fine_tuned_model(fine_tuned).to(ranks.device)
    expected = max(1, problem.target.n_classes)
    if model.n_outputs != expected:
        raise UserError(
            f"{fine_tuned.path} has {model.n_outputs} outputs, this task needs {expected} "
            f"({', '.join(problem.cohort.classes) or 'regression'})."
        )
    loader = evaluation_loader(
        problem.split.test, problem, config, fine_tuned, ranks, control_of(fine_tuned)
    )
    precision = autocast(ranks.device, config.fine_tune.use_bfloat16)
    return predict(model, loader, len(problem.cohort.y), problem, precision, ranks)


def control_of(fine_tuned: Pretrained) -> str:
    """The control that a fine-tuned checkpoint is, or ``model``."""
    return (fine_tuned.task or {}).get("control", "model")


def without_pretraining(pretrained: Pretrained, seed: int) -> Pretrained:
    """The same checkpoint before it was trained: random weights, and no one it was trained on."""
    return dataclasses.replace(
        pretrained, encoder=pretrained.untrained(seed), training_people=hash_ids([])
    )


# --- parts of the loop ---------------------------------------------------------------------------


def make_schedule(ft: FineTuneConfig, steps_per_epoch: int, batch: int) -> WarmupCosine:
    """Learning rate of the last layer: ``lr``, or ``blr`` for 256 clips a step (method 7)."""
    return WarmupCosine(
        total=ft.epochs * steps_per_epoch,
        warmup=round(ft.warmup_epochs * steps_per_epoch),
        start=0.0,
        peak=ft.blr * batch / 256 if ft.lr is None else ft.lr,
        final=ft.min_lr,
    )


def describe_memory(model: DownstreamViT, ft: FineTuneConfig, ranks: Ranks) -> None:
    """Say in the log what the model is and what a training step takes of the memory there is."""
    encoder = model.encoder
    logger.info(
        "%.1f M parameters, %.3g M of them trained; %d tokens of a clip, %d clips per device and "
        "micro-step",
        sum(p.numel() for p in model.parameters()) / 1e6,
        sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6,
        encoder.num_patches,
        ft.batch_size,
    )
    blocks = Blocks.from_modules(
        encoder.blocks,
        ft.batch_size,
        encoder.num_patches,
        bias=encoder.attention_bias,
        bfloat16=ft.use_bfloat16 and has_bfloat16(ranks.device),
        recompute=ft.gradient_checkpointing,
    )
    MemoryEstimate.from_modules([model], [], blocks.activations()).report(
        ranks.device,
        ranks.world_size,
        "Lower --batch_size (and raise fine_tune.accumulation_steps), or add "
        "--gradient_checkpointing.",
    )


def make_optimizer(model: DownstreamViT, ft: FineTuneConfig) -> torch.optim.AdamW:
    """AdamW whose groups carry ``lr_scale``: ``layer_decay`` to the power of layers above."""
    groups = param_groups_layer_decay(
        model, ft.weight_decay, model.no_weight_decay(), layer_decay=ft.layer_decay
    )
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999))


def make_criterion(problem: Problem, ft: FineTuneConfig, device: torch.device) -> Criterion:
    """Mean loss of outputs ``[B, C]`` against targets ``[B]``: cross-entropy, or squared error.

    Class weights have mean 1 over the training examples and the mean is over examples, not over
    weights, so that it does not matter how a batch is divided over devices and micro-steps.
    """
    n_classes = problem.target.n_classes
    if not n_classes:
        return lambda outputs, y: F.mse_loss(outputs[:, 0].float(), y)
    weights = problem.class_weights
    if weights is not None:
        weights = torch.as_tensor(weights, dtype=torch.float32, device=device)

    def cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(
            outputs.float(), y, weights, label_smoothing=ft.smoothing, reduction="none"
        ).mean()

    return cross_entropy


def make_sampler(n_clips: int, ft: FineTuneConfig, seed: int, ranks: Ranks) -> MicroBatchSampler:
    """Shuffled micro-batches; what does not fill an optimizer step waits for another epoch."""
    per_step = ft.batch_size * ft.accumulation_steps * ranks.world_size
    if n_clips < per_step:
        raise UserError(
            f"{n_clips} training examples are fewer than one optimizer step of {per_step} "
            f"(fine_tune.batch_size {ft.batch_size} x accumulation_steps {ft.accumulation_steps} "
            f"x {ranks.world_size} devices). Lower --batch_size."
        )
    return MicroBatchSampler(
        n_clips,
        batch_size=ft.batch_size,
        accumulation=ft.accumulation_steps,
        epochs=ft.epochs,
        seed=seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )


def steps_to_take(problem: Problem, config: DownstreamConfig, ranks: Ranks) -> int:
    """Optimizer steps of a training; :class:`UserError` if there are too few people for one."""
    ft, n_clips = config.fine_tune, len(problem.split.train)
    return ft.epochs * make_sampler(n_clips, ft, problem.seed, ranks).steps_per_epoch


def train_step(
    step: int,
    batches: Iterator[dict[str, Tensor]],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    rate: float,
    criterion: Criterion,
    problem: Problem,
    ft: FineTuneConfig,
    precision: Precision,
    ranks: Ranks,
) -> StepRecord:
    """One optimizer step over ``accumulation_steps`` micro-batches; asks the device for nothing."""
    # Drop path is all that is drawn here.
    seed = np.random.SeedSequence([problem.seed, step, ranks.rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(seed[0]))
    network.train()
    targets = torch.as_tensor(problem.target.y)
    targets = targets if problem.target.n_classes else targets.float()
    losses, examples = [], []
    for micro in range(ft.accumulation_steps):
        batch = next(batches)
        numbers = batch["example"].numpy()
        examples.append(numbers.tolist())
        x = batch["fmri"].to(ranks.device, non_blocking=True)
        y = targets[numbers].to(ranks.device, non_blocking=True)
        last = micro == ft.accumulation_steps - 1
        with nullcontext() if last else no_sync(network):
            with precision():
                outputs = network(x)
            loss = criterion(outputs, y)
            (loss / ft.accumulation_steps).backward()
        losses.append(loss.detach())
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    limit = float("inf") if ft.clip_grad is None else ft.clip_grad
    grad_norm = nn.utils.clip_grad_norm_(parameters, limit)
    optimizer.step()
    clear_gradients(network, optimizer)
    return StepRecord(losses, grad_norm, examples, {"step": step, "lr": rate})


# --- evaluation ----------------------------------------------------------------------------------


def evaluation_loader(
    examples: np.ndarray,
    problem: Problem,
    config: DownstreamConfig,
    pretrained: Pretrained,
    ranks: Ranks,
    name: str = "model",
) -> DataLoader:
    """This rank's share of the evenly spread clips of ``examples``, as the control shows them."""
    clips = ExampleClips(problem.cohort, config.data, pretrained, config.evaluation.clips, examples)
    share = Subset(clips, range(ranks.rank, len(clips), ranks.world_size))
    return DataLoader(
        share,
        config.evaluation.encoder_batch_size,
        num_workers=config.data.num_workers,
        collate_fn=ShownAs(REGISTRY[name].function),
    )


@torch.inference_mode()
def predict(
    model: DownstreamViT,
    loader: DataLoader,
    n_examples: int,
    problem: Problem,
    precision: Precision,
    ranks: Ranks,
) -> np.ndarray:
    """Scores of the loader's examples, averaged over their clips and NaN for the others.

    Probabilities ``[n_examples, C]``, or standardised predictions ``[n_examples]``. The clips of an
    example are summed in the order of the clips, whatever the number of ranks.
    """
    model.eval()
    own = []
    with batches_of(loader) as batches:
        for batch in batches:
            with precision():
                outputs = model(batch["fmri"].to(ranks.device, non_blocking=True))
            outputs = outputs.cpu().double()  # on the host: not every device has float64
            scores = outputs.softmax(dim=1) if problem.target.n_classes else outputs[:, 0]
            own.append((batch["item"].numpy(), batch["example"].numpy(), scores.numpy()))
    parts = [part for share in ranks.gather(own) for part in share]
    items, examples, scores = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(items)
    total = np.zeros((n_examples, *scores.shape[1:]))
    np.add.at(total, examples[order], scores[order])
    count = np.bincount(examples, minlength=n_examples).astype(float)
    count[count == 0] = np.nan
    return (total.T / count).T


def validate(scores: np.ndarray, problem: Problem) -> tuple[float, float]:
    """The metric that selects, over units, and the plain loss of the examples."""
    valid, y = problem.split.valid, problem.target.y[problem.split.valid]
    if problem.target.n_classes:
        likelihood = scores[valid, y]
        loss = float(-np.log(np.maximum(likelihood, np.finfo(float).tiny)).mean())
    else:
        loss = float(np.square(scores[valid] - y).mean())
    return validation_score(scores[valid], valid, problem), loss
