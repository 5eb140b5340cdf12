"""A claim of somebody's, or a measurement of one's own, held against the hardware's dense peak.

A claim says which model, on how many chips of which peak, and how fast: as tokens per second, as
seconds per step, or as so many tokens in so many days. `judge` answers with what that means in
FLOP/s, MFU, days and dollars, and calls a claim that needs more than the peak impossible.

    claim = Claim(124e6, 12, 768, 1024, peak=312e12, chips=8,
                  step_seconds=0.3, tokens_per_step=524288, tokens=10e9, dollars_per_hour=1.75)
    judge(claim).mfu, judge(claim).days, judge(claim).dollars
"""

from dataclasses import dataclass

from . import scaling

SPEEDS = (
    "tokens_per_second, or step_seconds with tokens_per_step, or days with tokens (one of these)"
)


@dataclass(frozen=True)
class Claim:
    """A model, a machine and a speed. ValueError names the first number that makes no sense.

    Without layers, width and context, attention is left out: 6 N FLOPs per token. `tokens` beside a
    speed of another kind are those of the whole run, and give it days and dollars.
    """

    parameters: float
    layers: int | None = None
    width: int | None = None
    context: int | None = None
    peak: float | None = None  # dense FLOP/s of one chip; None: no MFU, and nothing is impossible
    chips: int = 1
    tokens_per_second: float | None = None  # of all chips
    step_seconds: float | None = None
    tokens_per_step: float | None = None
    tokens: float | None = None
    days: float | None = None
    recompute: bool = False  # forward runs twice: HFU is above MFU
    dollars_per_hour: float | None = None  # of one chip
    watts: float | None = None  # of one chip

    def __post_init__(self) -> None:
        scaling.positive(parameters=self.parameters)
        scaling.counted(chips=self.chips)
        shape = {"layers": self.layers, "width": self.width, "context": self.context}
        if any(value is not None for value in shape.values()):
            scaling.counted(**shape)
        for name in ("peak", "tokens_per_second", "step_seconds", "tokens_per_step", "tokens",
                     "days"):  # fmt: skip
            if getattr(self, name) is not None:
                scaling.positive(**{name: getattr(self, name)})
        for name in ("dollars_per_hour", "watts"):
            if getattr(self, name) is not None:
                scaling.not_negative(**{name: getattr(self, name)})
        given = [n for n in ("tokens_per_second", "step_seconds", "days") if self.has(n)]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"a claim needs one speed, got {found}: give {SPEEDS}")
        for speed, partner in (("step_seconds", "tokens_per_step"), ("days", "tokens")):
            if self.has(speed) and not self.has(partner):
                raise ValueError(f"{speed} says no speed without {partner}: give {SPEEDS}")
        if self.has("tokens_per_step") and not self.has("step_seconds"):
            raise ValueError(f"tokens_per_step says nothing without step_seconds: give {SPEEDS}")

    def has(self, name: str) -> bool:
        return getattr(self, name) is not None


@dataclass(frozen=True)
class Judgement:
    """What a claim comes to. None where the claim gave too little to say."""

    tokens_per_second: float
    flops_per_token: float
    achieved_flops: float  # FLOP/s of each chip, recompute not counted
    mfu: float | None  # fractions of the dense peak
    hfu: float | None
    days: float | None  # of the whole run
    dollars: float | None
    kilowatt_hours: float | None
    impossible: str | None  # one sentence, or None


def judge(claim: Claim) -> Judgement:
    """FLOP/s, MFU, HFU, days, dollars and energy of a claim, and whether it is impossible."""
    speed, work = speed_of(claim), work_of(claim)
    utilisation = None
    if claim.peak is not None:
        utilisation = scaling.mfu(speed, work, claim.peak, claim.chips)
    days = None if claim.tokens is None else scaling.days(claim.tokens, speed)

    def of_the_run(rate: float | None, total) -> float | None:
        return None if days is None or rate is None else total(days, rate, claim.chips)

    return Judgement(
        tokens_per_second=speed,
        flops_per_token=work,
        achieved_flops=scaling.achieved_flops(speed, work, claim.chips),
        mfu=utilisation,
        hfu=None if utilisation is None else scaling.hfu(utilisation, claim.recompute),
        days=days,
        dollars=of_the_run(claim.dollars_per_hour, scaling.dollars),
        kilowatt_hours=of_the_run(claim.watts, scaling.kilowatt_hours),
        impossible=impossible(claim.parameters, speed, work, claim.peak, claim.chips),
    )


def speed_of(claim: Claim) -> float:
    """Tokens/s of all chips, in whichever way it was claimed."""
    if claim.tokens_per_second is not None:
        return claim.tokens_per_second
    if claim.step_seconds is not None:
        return scaling.tokens_per_second(claim.tokens_per_step, claim.step_seconds)
    return scaling.tokens_per_second(claim.tokens, claim.days * scaling.DAY)


def work_of(claim: Claim) -> float:
    """FLOPs per token, with attention where the model's shape is known."""
    if claim.layers is None:
        return scaling.weight_flops_per_token(claim.parameters)
    return scaling.flops_per_token(claim.parameters, claim.layers, claim.width, claim.context)


def impossible(
    parameters: float, tokens_per_second: float, flops_per_token: float, peak: float | None,
    chips: int,
) -> str | None:  # fmt: skip
    """A sentence if the claim needs more than the dense peak, otherwise None."""
    if peak is None:
        return None
    share = scaling.mfu(tokens_per_second, flops_per_token, peak, chips)
    if share <= 1:
        return None
    needed = show_flops(tokens_per_second * flops_per_token)
    machine = "one chip has" if chips == 1 else f"{chips:,} chips have"
    return (
        f"impossible, {share:.1%} of the dense peak: {tokens_per_second:,.0f} tokens/s through "
        f"{show_count(parameters)} parameters take {needed}, and {machine} "
        f"{show_flops(peak * chips)}"
    )


def show_flops(rate: float) -> str:
    """ "2.50 PFLOP/s": three digits and a unit."""
    return f"{scaled(rate)}FLOP/s"


def show_count(number: float) -> str:
    """ "125M", "70.0B": three digits, in the units that model names have."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit * 0.9995:
            return three_digits(number / unit) + name
    return f"{number:.0f}"


def scaled(value: float) -> str:
    for unit, name in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= unit * 0.9995:
            return f"{three_digits(value / unit)} {name}"
    return f"{value:.0f} "


def three_digits(value: float) -> str:
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"
