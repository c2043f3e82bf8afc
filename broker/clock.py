"""The system's clock: the one place that asks the host what time it is."""

import time


class SystemClock:
    """Wall time of this host."""

    def now(self) -> float:
        """Return Unix seconds."""
        return time.time()  # noqa: TID251 - this is the Clock
