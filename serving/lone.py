"""Lone: which way a batch goes that has nothing beside it, over all cores or on one. Pure arithmetic.

The way that was faster of late goes. Lone batches alone are compared: one beside others takes longer, whichever way; and of
those only such as follow another of their way, since the first on all cores finds threads asleep and caches cold (25 ms
where the next takes 13). The slower way is tried now and then with two batches, the more seldom the slower it was, since the
machine may have become quieter or busier; soon at first, since a server that starts is slow; and on at once while it turns
out faster, so that a change is followed within a few batches of that trial.
"""

from __future__ import annotations

from dataclasses import dataclass

from serving.pace import Pace

_UNKNOWN = Pace(memory=0.7)  # some three batches count
_TRIAL = 2  # batches, of which the last counts
_FIRST = 4.0  # batches until the first trial; twice as many until the next, and so on
_MOST_SELDOM = 6.0  # times `retry_every`, however slow the slower way was
_MOST = 2.0  # times what was expected: a batch that took longer says no more than that, since something else held it up;
# and one that took less than that part of it shows that what was known is of a machine that was held up, which is forgotten


@dataclass
class Lone:
    """retry_every: trials of the slower way may cost one part in so many of the time."""

    wide: Pace = _UNKNOWN
    narrow: Pace = _UNKNOWN
    retry_every: int = 32
    _since: int = 0
    _tried: int = 0  # batches of the trial under way
    _early: float = _FIRST  # the longest until the next trial, doubled by each
    _last: bool | None = None  # whether the batch before was wide; None where it was no lone one

    def prefers_wide(self, rows: float) -> bool:
        """The way of the next batch; all cores while nothing is known of them."""
        if not self.wide.is_known or not self.narrow.is_known:
            return not self.wide.is_known
        self._since += 1
        if self._since <= self._patience(rows):
            return self._is_wide_faster(rows)
        self._tried += 1
        if self._tried >= _TRIAL:
            self._since = self._tried = 0
            self._early = min(2.0 * self._early, _MOST_SELDOM * self.retry_every)
        return not self._is_wide_faster(rows)

    def note(self, rows: float, seconds: float, *, is_wide: bool) -> None:
        """A lone batch of `rows` has taken so long."""
        own, other = (self.wide, self.narrow) if is_wide else (self.narrow, self.wide)
        follows, self._last = self._last == is_wide, is_wide
        if own.is_known and not follows:
            return
        if own.is_known and other.is_known and self._is_wide_faster(rows) != is_wide and seconds < other.seconds_for(rows):
            self._since, self._tried = int(_MOST_SELDOM * self.retry_every), _TRIAL - 1
        if own.is_known:
            seconds = min(seconds, _MOST * own.seconds_for(rows))
            own = _UNKNOWN if _MOST * seconds < own.seconds_for(rows) else own
        if is_wide:
            self.wide = own.after(rows, seconds)
        else:
            self.narrow = own.after(rows, seconds)

    def interrupt(self) -> None:
        """Batches ran beside each other: the next lone one is the first of its way."""
        self._last = None

    def _patience(self, rows: float) -> float:
        """How many batches take the faster way before one takes the other."""
        faster, slower = sorted((self.wide.seconds_for(rows), self.narrow.seconds_for(rows)))
        lost = _TRIAL * (slower / max(faster, 1e-9) - 1.0)  # by a trial, in batches of the faster way
        return min(self.retry_every * min(_MOST_SELDOM, max(float(_TRIAL), lost)), self._early)

    def _is_wide_faster(self, rows: float) -> bool:
        return self.wide.seconds_for(rows) <= self.narrow.seconds_for(rows)
