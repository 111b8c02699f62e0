"""[training] of a node's configuration: when it learns from corrections, how, and what has to be there."""

from datetime import datetime, timedelta
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field

from dicomnode.configfile import Allowed, Section
from dicomnode.configtypes import Seconds, Window, each_once, is_within, times

Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
WEEKDAYS: tuple[Weekday, ...] = get_args(Weekday)


class TrainingSettings(Section):
    """[training]: learning from corrections at this site."""

    enabled: bool = Field(True, description="train on corrections")
    window: Window = Field(
        "02:00-05:00", description="local time in which training may run; equal times: always"
    )
    days: Annotated[
        tuple[Weekday, ...],
        AfterValidator(each_once),
        Allowed('a list of "mon", "tue", "wed", "thu", "fri", "sat", "sun"'),
    ] = Field(
        WEEKDAYS,
        description="days on which the window opens; none: training waits for `dicomnode train --now`",
    )
    minimum_corrected_slices: int = Field(5, ge=1, description="new corrected slices that start a training")
    minimum_new_cases: int = Field(
        10, ge=1, description="or so many new cases, corrected or accepted as they were"
    )
    minimum_patients: int = Field(
        3, ge=1, description="training waits until so many patients are behind all its training cases"
    )
    hold_out_fraction: float = Field(
        0.2, gt=0, lt=1, description="share of patients kept for judging, never trained on"
    )
    minimum_hold_out_cases: int = Field(5, ge=1, description="below this the gate says inconclusive")
    epsilon_dice: float = Field(
        0.01, ge=0, le=1, description="loss of mean Dice per label that the gate tolerates"
    )
    recipe: Literal["dafne", "gentle", "full", "unfreezing", "lora", "head"] = Field(
        "dafne", description="how a model learns from corrections"
    )
    time_budget_s: Seconds = Field(
        7200, description="longest training at a time; what is not done goes on in the next window"
    )
    automatic_rollback: bool = Field(
        True,
        description="put the version before back where corrections show that one which came into use "
        "automatically does worse; false: only advise it",
    )
    maximum_cases: int = Field(
        2000,
        ge=1,
        description="training cases kept per model; above, patients with many give theirs up first",
    )

    def is_open(self, local: datetime) -> bool:
        """Answer whether the window is open; one that passes midnight belongs to the day it opens on."""
        opens, closes = times(self.window)
        is_morning_after = opens > closes and local.time() < closes
        day = local - timedelta(days=1) if is_morning_after else local
        return WEEKDAYS[day.weekday()] in self.days and is_within(self.window, local.time())

    def next_opening(self, local: datetime) -> datetime:
        """Say when the window opens next, from a moment on; a day later, where it never opens."""
        opens, _ = times(self.window)
        first = local.replace(hour=opens.hour, minute=opens.minute, second=0, microsecond=0)
        days = (first + timedelta(days=ahead) for ahead in range(8))
        coming = (day for day in days if day > local and self.is_open(day))
        return next(coming, local + timedelta(days=1))
