"""Trains a GPT: `python -m gpt.train [PRESET] [--field value ...]`.

Reads in the order in which things happen: data, model, optimizer, the loop, the end. Everything a
step uses follows from (seed, step) and the checkpoint, so that a run that was stopped, however
abruptly, continues with the same numbers.
"""

import contextlib
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save
from tqdm import tqdm

import tinygrad_edu as tg

from . import config as cli
from . import fit, gpt2_layout
from .checkpoint import checkpoint_of, restore, resuming
from .config import TrainConfig
from .data import Dataset, batch, open_data
from .disk import write_atomically
from .errors import UserError
from .model import GPT, GPTConfig
from .progress import Display, Progress, stop_requests
from .run_folder import Checkpoint, RunFolder
from .sample import closing_text

TRAINING, EVALUATION = 0, 1  # keep the random batches of the two apart


@contextlib.contextmanager
def blamed(x: np.ndarray, y: np.ndarray) -> Iterator[None]:
    """A NaN that is found inside takes this batch along."""
    try:
        yield
    except tg.NonFiniteError as error:
        error.batch = {"x": x, "y": y}
        raise


def evaluate(model: GPT, data: Dataset, config: TrainConfig, step: int) -> float:
    """The mean loss over held-out batches, which depend on (seed, step) alone."""
    rng = np.random.default_rng((config.seed, step, EVALUATION))
    losses = []
    model.eval()
    with tg.no_grad():
        for _ in range(config.eval_batches):
            x, y = batch(data.val, rng, config.batch_size, config.block_size)
            with blamed(x, y):
                losses.append(model(x, y)[1].item())
    model.train()
    return float(np.mean(losses))


def train_step(
    model: GPT, optimizer: tg.optim.AdamW, data: Dataset, config: TrainConfig, step: int
) -> tuple[float, float]:
    """One optimizer step -> (mean loss of its micro-batches, gradient norm)."""
    rng = np.random.default_rng((config.seed, step, TRAINING))
    optimizer.zero_grad()
    total = 0.0
    for _ in range(config.accumulate):
        x, y = batch(data.train, rng, config.batch_size, config.block_size)
        with blamed(x, y):
            _, loss = model(x, y)
            (loss * (1 / config.accumulate)).backward()
        total += loss.item() / config.accumulate
    norm = tg.optim.clip_grad_norm_(optimizer.params, config.grad_clip or math.inf)
    if math.isfinite(total) and math.isfinite(norm):
        optimizer.step()
    return total, norm


def main(argv: list[str]) -> int:
    config = cli.parse(argv)
    out = Path(config.out or cli.default_out(config))
    if config.threads:
        tg.set_num_threads(config.threads)

    folder = RunFolder(out)
    found = folder.read() if config.resume and out.exists() else None
    kept = out / "tokenizer.json"
    data = open_data(
        config.data,
        config.tokenizer,
        config.vocab_size,
        block_size=config.block_size,
        tokenizer_file=kept if found and kept.exists() else None,
    )
    shape = config.model(data.vocab_size)
    with fit.device(config, shape) as (chip, recompute), folder.taken():
        return train(config, shape, data, folder, found, recompute, chip)


def train(
    config: TrainConfig,
    shape: GPTConfig,
    data: Dataset,
    folder: RunFolder,
    found: Checkpoint | None,
    recompute: bool,
    chip: tg.memory.Chip | None = None,
) -> int:
    """The run itself, on a chip or without one; gives the exit status."""
    out = folder.path
    model = GPT(shape, np.random.default_rng(config.seed), recompute)
    schedule = tg.optim.WarmupCosine(
        config.learning_rate,
        config.warmup_steps,
        max(config.steps, config.warmup_steps),  # a short run may end while still warming up
        min(config.min_lr, config.learning_rate),  # one below the preset's last stays as it is
    )
    optimizer = tg.optim.AdamW(
        model.parameters(),
        config.learning_rate,
        (config.beta1, config.beta2),
        weight_decay=config.weight_decay,
    )
    size = sum(parameter.size for parameter in model.parameters())
    print(f"GPT of {size / 1e6:.2f}M parameters on {data.name}: {len(data.train):,} tokens to "
          f"train on, {len(data.val):,} held out")  # fmt: skip
    if chip is not None:
        print(fit.announcement(config, shape, recompute, chip.external.nbytes))

    if found:
        restore(found, model, optimizer, data, out)
        print(resuming(found.step, config.steps, out))
    else:
        if config.resume:
            print(f"no checkpoint in {out} yet: starting from the beginning, as this command says")
        folder.open_new(config.overwrite, config.resume)
    # also where a run goes on: they may be lost, and a folder that takes no files is noticed now
    write_atomically(out / "config.json", gpt2_layout.config_text(model.config).encode())
    if data.tokenizer is not None:
        data.tokenizer.save(out / "tokenizer.json")
    start = saved = found.step if found else 0
    if left_out := folder.metrics.cut(start):
        print(left_out, file=sys.stderr)
    kept = f"the one of step {start} is kept" if found else "there is no earlier one"
    val_loss = trouble = None

    watch = tg.detect_nan() if config.detect_nan else contextlib.nullcontext()
    display = Display(sys.stderr)
    bar = tqdm(total=config.steps, initial=start, unit="step", file=display, dynamic_ncols=True,
               mininterval=0.2 if display.isatty() else 10)  # fmt: skip
    if chip is not None:
        flops = fit.rehearse(shape, config.batch_size, recompute).flops
        chip.watch = Progress(bar, flops * config.accumulate)
    with stop_requests() as stop, bar, watch:
        for step in range(start + 1, config.steps + 1):
            began = time.perf_counter()
            optimizer.lr = schedule(step - 1)
            last = step == config.steps
            try:
                loss, norm = train_step(model, optimizer, data, config, step)
                seconds = time.perf_counter() - began
                speed = config.batch_size * config.block_size * config.accumulate / seconds
                row = {"step": step, "loss": loss, "ms": seconds * 1e3, "tokens_per_s": speed}
                if found and step == start + 1:
                    row["resumed_from"] = start
                wrong = None
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    wrong = f"the loss is {loss} and the gradient norm {norm}"
                elif step % config.eval_every == 0 or last:
                    row["val_loss"] = val_loss = evaluate(model, data, config, step)
                    if not math.isfinite(val_loss):
                        wrong = f"the held-out loss is {val_loss}"
            except tg.NonFiniteError as error:
                raise UserError(culprit(error, model, out, step)) from None
            folder.metrics.append(row)
            if wrong:
                raise UserError(
                    f"step {step}: {wrong}; checkpoints: {kept}. The same command with --resume "
                    "--detect-nan names the op at fault"
                )
            if "val_loss" in row or stop:
                try:
                    folder.commit(step, *checkpoint_of(model, optimizer, data, config))
                    saved, kept = step, f"the one of step {step} is kept"
                    folder.draw(final=last or bool(stop))
                except tg.memory.ExternalMemoryError:  # not the disk: the numbers themselves
                    raise
                except OSError as error:
                    problem = f"checkpoint of step {step} not written ({error})"
                    if last or stop:
                        raise UserError(
                            f"{problem}; {kept}: mend that, then the same command with --resume"
                        ) from None
                    bar.write(f"{problem}; going on, {kept}", display)
            if folder.trouble != trouble:
                trouble = folder.trouble
                bar.write(trouble or "the disk takes everything again", display)
            held_out = "" if val_loss is None else f", held-out loss {val_loss:.3f}"
            bar.set_postfix_str(f"loss {loss:.3f}{held_out}, {speed:,.0f} tokens/s", refresh=False)
            bar.update()
            if stop and saved == step:
                bar.close()
                print(f"stopped and saved at step {step}: --resume --out {out} goes on")
                return 130

    streams = chip is not None and 4 * size > chip.memory  # every token would fetch all weights
    if data.tokenizer is not None and not streams:
        prompt = "def " if config.data is None else "\n"
        with contextlib.suppress(tg.memory.ChipMemoryError):  # keys and values may need more
            print(f"\n{closing_text(model, data.tokenizer, prompt, config.seed)}\n")
    final = "" if val_loss is None else f"held-out loss {val_loss:.4f}; "
    print(f"{final}run folder: {out} (loss.png, metrics.jsonl, model.safetensors)")
    return 0


def culprit(error: tg.NonFiniteError, model: GPT, out: Path, step: int) -> str:
    """One line about the first NaN, with the batch that made it saved beside the run."""
    names = {id(module): name or "the model itself" for name, module in model.named_modules()}
    path = out / f"nan-step-{step}.safetensors"
    try:
        write_atomically(path, save(error.batch))
        saved = f"its batch is in {path}"
    except OSError as problem:
        saved = f"its batch could not be saved ({problem})"
    where = names.get(id(error.module), "the model itself")
    return (
        f"step {step}: {error.op} in {where} made {error.what} in the {error.phase} pass; {saved}"
    )


if __name__ == "__main__":
    cli.run(main, "gpt.train")
