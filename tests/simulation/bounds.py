"""How often the schedules fire, and how long it may take until all is well again; in seconds."""

from token_keeper import renewal
from token_keeper.renewal import MARGIN

GUARD_EVERY, PROBE_EVERY, TICK_EVERY = 60, 300, 110 * 60
"""Seconds."""

EVERY = {"guard": GUARD_EVERY, "probe": PROBE_EVERY, "tick": TICK_EVERY}

DEEPEST = 4
"""How many invocations may be under way inside each other."""

REFUSALS_TOLD = 5
"""Of the guards that find nothing but wrong records one in so many runs; all of them would take a third of the time."""

CALM = renewal.LEASE + GUARD_EVERY + renewal.SLOW_RETRY + 60
"""Seconds without trouble after which each account has a usable token; the last minute is for slow neighbours, because the
instances take turns here and their renewals one after the other."""

CALM_FOR_TICKETS = CALM + 120
"""Seconds; a ticket can be fetched only after its token."""

CALM_WITH_TICK = TICK_EVERY + CALM_FOR_TICKETS
"""Seconds, where only the main tick can find what there is to do: an event was lost, or an item."""

FOUND_WITHIN = PROBE_EVERY + GUARD_EVERY + MARGIN + 5
"""Seconds after which a token that died early is replaced, where nothing else is wrong; some are for the calls."""

LONG_WAITS = {45009: renewal.QUOTA_RETRY, 48006: renewal.QUOTA_RETRY, **renewal.CONFIRMATION_WAITS}
"""Seconds the keeper waits after these errcodes because calling sooner would be wrong."""
