"""A claim of somebody's, or a measurement of one's own, held against the hardware's dense peak.

A claim says which model, on how many chips of which peak, and how fast: as tokens per second, as
seconds per step, or as so many tokens in so many days. `judge` answers with what that means in
FLOP/s, MFU, days and dollars, and calls a claim that needs more than the peak impossible.

    claim = Claim(parameters=124e6, layers=12, width=768, context=1024, peak=312e12, chips=8,
                  step_seconds=0.3, tokens_per_step=524288, tokens=10e9, dollars_per_hour=1.75)
    judge(claim).mfu, judge(claim).days, judge(claim).dollars      # 0.60, 0.066, 22.3
"""

from collections.abc import Callable
from dataclasses import dataclass

from . import scaling

WAYS = "tokens_per_second, or step_seconds with tokens_per_step, or days with tokens"
PARTNERS = {"step_seconds": "tokens_per_step", "days": "tokens"}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A model, a machine and one speed. ValueError names the first number that makes no sense.

    Without layers, width and context, attention is left out: 6 N FLOPs per token. `tokens` are
    those of the whole run; beside a speed in seconds they give the run's days and dollars.
    """

    parameters: float
    layers: int | None = None
    width: int | None = None
    context: int | None = None
    peak: float  # dense FLOP/s of one chip
    chips: int = 1
    tokens_per_second: float | None = None  # of all chips
    step_seconds: float | None = None
    tokens_per_step: float | None = None  # on all chips
    tokens: float | None = None
    days: float | None = None
    recompute: bool = False  # the forward pass runs twice, and HFU is above MFU
    dollars_per_hour: float | None = None  # of one chip
    watts: float | None = None  # of one chip

    def __post_init__(self) -> None:
        scaling.positive(parameters=self.parameters, peak=self.peak)
        scaling.counted(chips=self.chips)
        if self.has("layers") or self.has("width") or self.has("context"):
            scaling.counted(layers=self.layers, width=self.width, context=self.context)
        for name in ("tokens_per_second", "step_seconds", "tokens_per_step", "tokens", "days"):
            if self.has(name):
                scaling.positive(**{name: getattr(self, name)})
        for name in ("dollars_per_hour", "watts"):
            if self.has(name):
                scaling.not_negative(**{name: getattr(self, name)})
        speeds = [n for n in ("tokens_per_second", "step_seconds", "days") if self.has(n)]
        if len(speeds) != 1:
            found = " and ".join(speeds) or "none"
            raise ValueError(f"a claim has one speed, got {found}: give {WAYS}")
        partner = PARTNERS.get(speeds[0])
        if partner and not self.has(partner):
            raise ValueError(f"{speeds[0]} is no speed without {partner}: give {WAYS}")
        if self.has("tokens_per_step") and not self.has("step_seconds"):
            raise ValueError(
                f"tokens_per_step goes with step_seconds, not {speeds[0]}: give {WAYS}"
            )

    def has(self, name: str) -> bool:
        return getattr(self, name) is not None


@dataclass(frozen=True)
class Judgement:
    """What a claim comes to; None where it gave too little to say."""

    tokens_per_second: float  # of all chips
    flops_per_token: float
    achieved_flops: float  # FLOP/s of each chip, recompute not counted
    mfu: float  # a fraction of the dense peak
    hfu: float  # the same with recompute counted
    days: float | None  # of the whole run
    dollars: float | None
    kilowatt_hours: float | None
    impossible: str | None  # one sentence


def judge(claim: Claim) -> Judgement:
    """FLOP/s, MFU, HFU, days, dollars and energy of a claim, and whether it is impossible."""
    speed, work = speed_of(claim), work_of(claim)
    mfu = scaling.mfu(speed, work, claim.peak, claim.chips)
    days = scaling.days(claim.tokens, speed) if claim.has("tokens") else None

    def of_run(total: Callable[[float, float, int], float], rate: float | None) -> float | None:
        return None if days is None or rate is None else total(days, rate, claim.chips)

    return Judgement(
        tokens_per_second=speed,
        flops_per_token=work,
        achieved_flops=scaling.achieved_flops(speed, work, claim.chips),
        mfu=mfu,
        hfu=scaling.hfu(mfu, claim.recompute),
        days=days,
        dollars=of_run(scaling.dollars, claim.dollars_per_hour),
        kilowatt_hours=of_run(scaling.kilowatt_hours, claim.watts),
        impossible=None if mfu <= 1 else objection(claim, speed, work, mfu),
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


def objection(claim: Claim, speed: float, work: float, mfu: float) -> str:
    """The sentence about a claim that needs more than there is."""
    needed, machine = speed * work, claim.peak * claim.chips
    have = "one chip has" if claim.chips == 1 else f"{claim.chips:,} chips have"
    return (
        f"impossible: MFU would be {mfu:.1%}; {speed:,.0f} tokens/s through "
        f"{short(claim.parameters, 'kMBT')} parameters take {short(needed, 'kMGTPEZ', ' ')}FLOP/s, "
        f"and {have} {short(machine, 'kMGTPEZ', ' ')}FLOP/s at the dense peak"
    )


def short(value: float, units: str, space: str = "") -> str:
    """ "125M": three digits and a unit, one letter per factor of 1000."""
    unit = ""
    for letter in units:
        if value < 999.5:
            break
        value, unit = value / 1000, letter
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f}{space}{unit}"
