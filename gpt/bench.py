"""How fast is it here? `python -m gpt.bench [matmul | kernels | compile | [chip] PRESET ...]`.

matmul: products of GPT shapes against NumPy's BLAS and the FMA peak. kernels: each fused kernel
against its limit. compile: the first loss with cold and warm caches. Presets (default: the three
small ones): a whole training step against PyTorch. chip PRESET ... (default: gpt2-124m): the step
on chips of some sizes, against the same step without one. Figures are medians; peers take turns.
"""

import json
import os
from typing import Any

from . import bench_chip, bench_compile, bench_kernels, bench_matmul, bench_step
from . import config as cli
from .errors import UserError

SMALL_PRESETS = ("nanogpt-cpu", "shakespeare-char", "gpt2-124m")
COMMANDS = ("matmul", "kernels", "compile")
CHIP, ON_CHIP = "chip", "gpt2-124m"


def parse(argv: list[str]) -> Any:
    parser = cli.OneLineParser(prog="python -m gpt.bench", description=__doc__)
    parser.add_argument(
        "what", nargs="*", default=list(SMALL_PRESETS), metavar="WHAT",
        help="matmul, kernels, compile, or presets (default: " + ", ".join(SMALL_PRESETS)
        + f"), or chip and presets (default: {ON_CHIP})",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=int, help="threads (default: all cores; matmul, kernels: 1 and all)"
    )
    parser.add_argument("--repeats", type=int, help="timed repeats per block (default: 3)")
    parser.add_argument("--blocks", type=int, help="blocks per peer (default: 3)")
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    parser.add_argument("--no-compiled", action="store_true", help="leave torch.compile out")
    parser.add_argument("--recompute", action="store_true", help="recompute activations in ours")
    parser.add_argument(
        "--chip", action="append", metavar="SIZE[,SIZE...]",
        help="chip: sizes of the chips (default: " + ",".join(bench_chip.BUDGETS) + ")",
    )  # fmt: skip
    parser.add_argument(
        "--external", metavar="FOLDER", help="chip: where the files are (default: temporary files)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    given = parser.parse_all(argv)
    for name in ("repeats", "blocks", "threads"):
        value = getattr(given, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}")
    on_chip, rest = given.what[0] == CHIP, given.what[1:]
    if (rest and set(given.what) & set(COMMANDS)) or CHIP in rest:
        raise UserError(
            f"{' '.join(given.what)}: give one of {', '.join(COMMANDS)}, or presets, or chip and "
            "presets"
        )
    if not on_chip and (given.chip or given.external):
        raise UserError("--chip and --external are for python -m gpt.bench chip [PRESET ...]")
    given.chip = bench_chip.parse_budgets(given.chip)
    return given


def main(argv: list[str], **sizes: Any) -> int:
    """`sizes` goes to the benchmark of matmul, kernels or a preset: tests make it small."""
    given = parse(argv)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    every = [given.threads] if given.threads else sorted({1, cores})
    repeats, blocks, what = given.repeats or 3, given.blocks or 3, given.what[0]
    if what == "matmul":
        show(bench_matmul, bench_matmul.bench(every, repeats, blocks, **sizes), given.json)
    elif what == "kernels":
        show(bench_kernels, bench_kernels.bench(every, repeats, **sizes), given.json)
    elif what == "compile":
        show(bench_compile, bench_compile.bench(repeats), given.json)
    elif what == CHIP:
        for preset in [cli.load_preset(name).check() for name in given.what[1:] or [ON_CHIP]]:
            found = bench_chip.bench(
                preset, every[-1], repeats, blocks, given.chip, given.external, **sizes
            )
            show(bench_chip, found, given.json)
    else:
        presets = [cli.load_preset(name).check() for name in given.what]
        for preset in presets:
            found = bench_step.bench(
                preset, every[-1], repeats, blocks, compiled=not given.no_compiled,
                torch=not given.no_torch, recompute=given.recompute, **sizes,
            )  # fmt: skip
            show(bench_step, found, given.json)
    return 0


def show(module: Any, found: dict[str, Any], as_json: bool) -> None:
    """One line of JSON, or the module's own table."""
    if as_json:
        print(json.dumps(found), flush=True)
    else:
        module.report(found)
        print(flush=True)


if __name__ == "__main__":
    cli.run(main, "gpt.bench")
