"""How long is a step, what does it cost, does it fit? `python -m gpt.plan PRESET [--hardware cs2]`.

Answers before anything runs, for any size: memory by tier, the step's time and what limits it,
tokens per second, days, energy and cost. With a measured --step-seconds or --tokens-per-second it
says what was achieved instead. --compare sets several side by side, --picture draws step time
against bandwidth and batch, --trace writes the step's timeline, of two passes at most, for
ui.perfetto.dev.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from tinygrad_edu.memory import parse_size, show_size
from tinygrad_edu.memory.hardware import Hardware, hardware

from . import config as cli
from .claims import Claim, Judgement, judge, short
from .errors import UserError
from .planner import Job, Plan, plan
from .scaling import DAY


def parse(argv: list[str]) -> Any:
    parser = cli.OneLineParser(
        prog="python -m gpt.plan", description=__doc__,
        epilog="presets: " + ", ".join(cli.preset_names()) + "; or the path of a .toml file",
    )  # fmt: skip
    add = parser.add_argument
    add("preset", nargs="?", metavar="PRESET", help="default: gpt2-124m; of --verify: three")
    add("--hardware", default="this-machine", help="cs1 cs2 cs3 a100 h100 h200 laptop this-machine")
    add("--chips", type=int, help="how many share the batch")
    add("--tokens", type=float, help="to train on in all (default: the preset's steps)")
    add("--batch-size", type=int, help="sequences per step (default: the preset's)")
    add("--block-size", type=int, help="tokens of context (default: the preset's)")
    add("--chip-memory", help="such as 256MB, instead of the hardware's")
    add("--bandwidth", help="between external memory and chip, such as 150GB per second")
    add("--achieved", type=float, help="fraction of the peak that products reach")
    add("--precision", choices=("fp32", "bf16", "fp16"), help="of weights and activations")
    add("--recompute", choices=("off", "on", "auto"), default="auto")
    add("--resident", action="store_true", help="all in the chip's own memory, nothing streams")
    add("--step-seconds", type=float, help="measured: what was achieved?")
    add("--tokens-per-second", type=float, help="measured: what was achieved?")
    add("--compare", metavar="LIST", help="such as cs2,a100x16,h100x8,this-machine")
    add("--trace", metavar="FILE", help="write a timeline, of two passes at most, for Perfetto")
    add("--picture", metavar="FILE", help="draw step time against bandwidth and batch (svg, png)")
    add("--verify", action="store_true", help="run steps here, and compare with what was planned")
    add("--json", action="store_true", help="for machines")
    return parser.parse_all(argv)


def job_of(given: Any, precision: str) -> Job:
    """The preset with what the command line changes."""
    preset = cli.load_preset(given.preset)
    for name in ("batch_size", "block_size", "chips"):
        value = getattr(given, name)
        if value is not None and value < 1:
            raise UserError(f"--{cli.dashed(name)} must be at least 1, got {value}")
    for name in ("tokens", "step_seconds", "tokens_per_second"):
        value = getattr(given, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{cli.dashed(name)} must be a number above 0, got {value}")
    if given.block_size:
        preset = dataclasses.replace(preset, block_size=given.block_size)
    model = preset.model(preset.vocab_size or 256)
    sequences = given.batch_size or preset.batch_size * preset.accumulate
    tokens = given.tokens or float(preset.steps * sequences * model.block_size)
    recompute = {"off": False, "on": True, "auto": None}[given.recompute]
    clip = preset.grad_clip > 0
    return Job(model, sequences, tokens, precision, recompute, clip, given.resident)


def check_outputs(given: Any) -> None:
    """What cannot be written or answered is said before anything is planned."""
    if given.step_seconds is not None and given.tokens_per_second is not None:
        raise UserError("--step-seconds and --tokens-per-second measure the same: give one of them")
    if given.compare is not None and given.chips is not None:
        raise UserError("--chips does not go with --compare: say how many there, as in a100x16")
    for name, file in (("--trace", given.trace), ("--picture", given.picture)):
        if file is None:
            continue
        path = Path(file)
        if (path.exists() and not path.is_file()) or not path.parent.is_dir():
            raise UserError(
                f"{name} {file}: expected a file in a folder that exists: make it first"
            )
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise UserError(f"{name} {file} cannot be written: choose another place")
    if given.picture is not None and Path(given.picture).suffix.lower() not in (".svg", ".png"):
        raise UserError(f"--picture {given.picture}: expected a name that ends in .svg or .png")


def hardware_of(name: str, given: Any) -> Hardware:
    changes = {
        field: value
        for field, value in (
            ("chips", given.chips),
            ("memory", given.chip_memory and parse_size(given.chip_memory, "--chip-memory")),
            ("bandwidth", given.bandwidth),
            ("achieved", given.achieved),
        )
        if value is not None
    }
    return hardware(name).but(**changes) if changes else hardware(name)


def precision_of(given: Any, chosen: Hardware) -> str:
    if given.precision:
        chosen.peak_of(given.precision)
        return given.precision
    return "bf16" if "bf16" in chosen.peak else "fp32"


def main(argv: list[str]) -> int:
    given = parse(argv)
    if given.verify:
        from . import plan_verify

        presets = plan_verify.PRESETS if given.preset is None else (given.preset,)
        return plan_verify.main(given.json, presets)
    given.preset = given.preset or "gpt2-124m"
    check_outputs(given)
    try:
        names = [given.hardware] if given.compare is None else given.compare.split(",")
        cli.load_preset(given.preset)  # a wrong name is said before this machine is timed
        machines = [hardware_of(name.strip(), given) for name in names]
        plans = [plan(job_of(given, precision_of(given, one)), one) for one in machines]
    except ValueError as error:
        raise UserError(str(error)) from None
    except OverflowError as error:
        raise UserError(f"no plan for these numbers: {error}") from None
    try:
        return answer(given, plans)
    except UserError:
        raise
    except (ValueError, OverflowError) as error:
        raise UserError(f"no plan for these numbers: {error}") from None


def answer(given: Any, plans: list[Plan]) -> int:
    """Prints the plans, and draws what was asked for."""
    measured = given.step_seconds or (
        plans[0].job.tokens_per_step / given.tokens_per_second if given.tokens_per_second else None
    )
    if measured:
        plans = [dataclasses.replace(one, step_seconds=measured, measured=True) for one in plans]
    if given.trace:
        plans[0].playback.timeline().chrome_trace(given.trace)
    if given.picture:
        from .plan_picture import draw

        draw(plans[0], Path(given.picture))
    if given.json:
        found = [one.as_json() for one in plans]
        print(json.dumps(found if given.compare else found[0]))
    elif given.compare:
        print(side_by_side(given.preset, plans))
    else:
        print(report(given.preset, plans[0]))
    return 0


def count(number: float) -> str:
    for unit, name in ((1e12, " trillion"), (1e9, " billion"), (1e6, " million")):
        if number >= unit:
            return f"{amount(number / unit)}{name}"
    return f"{number:,.0f}"


def duration(seconds: float) -> str:
    for least, unit, name in (
        (3 * 365 * DAY, 365 * DAY, "years"),
        (2 * DAY, DAY, "days"),
        (7200, 3600, "hours"),
        (120, 60, "min"),
    ):
        if seconds >= least:
            return f"{seconds / unit:,.1f} {name}"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{amount(seconds * 1e3)} ms"


def amount(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def rows_of(one: Plan) -> list[tuple[str, str]]:
    """The answers, one line each: what, and how much."""
    job, machine, playback = one.job, one.hardware, one.playback
    peak = ", ".join(
        f"{kind} {show_size(nbytes)}"
        for kind, nbytes in sorted(one.need.at_peak.items(), key=lambda item: -item[1])
        if nbytes
    )
    fits = "yes" if one.fits else f"no: one sequence needs {show_size(one.smallest)} on a chip"
    waits = {
        "compute": playback.compute_seconds,
        **{f"wait for {cause}": s for cause, s in playback.stall_seconds.items() if s},
        "between steps": playback.bubble_seconds,
    }
    played = playback.step_seconds
    split = ", ".join(f"{name} {s / played:.0%}" for name, s in waits.items() if s / played > 0.005)
    cost, energy = one.cost_dollars, one.energy_kwh
    enough = "enough" if one.tokens_resident >= one.break_even_tokens else "too few"
    external = f"{show_size(one.external_bytes)}: weights, gradients and AdamW's state in float32"
    streaming = (
        f"{one.tokens_resident:,} tokens on a chip per pass, "
        f"{one.break_even_tokens:,.0f} hide the fetches in forward: {enough}"
    )
    if job.resident:
        external, streaming = "none: everything is on the chip", "nothing streams"
    return [
        ("parameters", count(one.parameters)),
        ("a step", f"{job.sequences:,} x {job.model.block_size:,} tokens, {job.precision}, "
                   f"recompute {'on' if one.recompute else 'off'}"),
        ("on one chip", f"{one.passes} pass(es) of at most {one.sequences_per_pass} "
                        "sequence(s)"),
        ("chip memory", f"{show_size(one.need.nbytes)} of {show_size(machine.memory)} at the peak, "
                        f"in {one.need.phase}: {peak}"),
        ("external memory", external),
        ("fits", fits),
        ("FLOPs per token", f"{one.flops_per_token:.4g}"),
        ("step time", duration(one.step_seconds) + (" (measured)" if one.measured else "")),
        ("planned split", split),
        ("tokens per second", f"{one.tokens_per_second:,.0f}"),
        ("MFU", f"{one.mfu:.1%} of {machine.chips} x "
                f"{short(machine.peak_of(job.precision), 'kMGTPEZ', ' ')}FLOP/s"),
        ("whole run", f"{count(job.tokens)} tokens in {duration(one.days * DAY)}"),
        ("energy", "unknown" if energy is None else f"{amount(energy)} kWh"),
        ("cost", "unknown: give the hardware a price" if cost is None else f"${amount(cost)}"),
        ("streaming", streaming),
        ("limited by", one.limited_by),
    ]  # fmt: skip


def report(preset: str, one: Plan) -> str:
    machine = one.hardware
    lines = [f"{preset} on {machine.several}"]
    lines += [f"  {name:<19}{value}" for name, value in rows_of(one)]
    if (objection := judged(one).impossible) is not None:
        lines.append(f"  {objection}")
    guesses = [
        f"{field} ({source.text})"
        for field, source in machine.sources.items()
        if not source.confirmed and field in ("achieved", "bandwidth", f"peak.{one.job.precision}")
    ]
    if guesses:
        lines.append(f"  assumed            {'; '.join(guesses)}")
    return "\n".join(lines)


def judged(one: Plan) -> Judgement:
    """The step time, planned or measured, as a claim."""
    job, machine = one.job, one.hardware
    return judge(
        Claim(
            parameters=one.parameters,
            peak=machine.peak_of(job.precision),
            chips=machine.chips,
            layers=job.model.n_layer,
            width=job.model.n_embd,
            context=job.model.block_size,
            step_seconds=one.step_seconds,
            tokens_per_step=job.tokens_per_step,
            recompute=one.recompute,
        )
    )


def side_by_side(preset: str, plans: list[Plan]) -> str:
    names = [p.hardware.several for p in plans]
    cells = [
        [duration(p.step_seconds), f"{p.tokens_per_second:,.0f}", f"{p.mfu:.1%}",
         duration(p.days * DAY),
         "unknown" if p.cost_dollars is None else f"${amount(p.cost_dollars)}",
         show_size(p.need.nbytes), show_size(p.external_bytes), f"{p.tokens_resident:,}",
         f"{p.break_even_tokens:,.0f}", "yes" if p.fits else "no", p.limited_by]
        for p in plans
    ]  # fmt: skip
    titles = ["step", "tokens/s", "MFU", "whole run", "cost", "chip memory", "external memory",
              "tokens resident", "tokens needed", "fits", "limited by"]  # fmt: skip
    lines = [f"{preset:<17}" + "".join(f"{name:>18}" for name in names)]
    for i, title in enumerate(titles):
        lines.append(f"{title:<17}" + "".join(f"{cell[i]:>18}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main, "gpt.plan")
