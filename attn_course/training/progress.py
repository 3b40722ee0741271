"""Showing how far a training is, wherever it runs.

In a notebook a bar that replaces itself; on a terminal a line by tqdm; nothing where
nobody watches. Everything goes to stdout, none of it to stderr.

What a notebook keeps has to be the same in every run, and a comparison of outputs sees
a display as it was first shown, not as it was last updated. So the bar starts and ends
as an empty display, and the result is printed once below it, without timings.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

#: The least time between two updates, in seconds. On two cores whoever draws the bar competes
#: with the training: ten updates a second made it a fifth slower.
INTERVAL = 2.0


def surroundings() -> str:
    """Where the output goes: ``"notebook"``, ``"terminal"`` or ``"silent"``.

    Example:
        >>> surroundings() in ("notebook", "terminal", "silent")
        True
    """
    if "IPython" in sys.modules:
        shell = sys.modules["IPython"].get_ipython()
        if getattr(shell, "kernel", None) is not None:
            return "notebook"
    return "terminal" if sys.stdout.isatty() else "silent"


class Progress:
    """A progress bar, as a context manager around the epochs.

    Args:
        epochs: How many epochs there are at most.
        show: ``False`` keeps it silent everywhere.

    Example:
        >>> with Progress(epochs=2, show=False) as bar:
        ...     bar.update(0.5, loss=1.25)
        ...     bar.finish("2 epochs")
    """

    def __init__(self, epochs: int, *, show: bool = True) -> None:
        """Find out where the output goes."""
        self.epochs = epochs
        self.where = surroundings() if show else "silent"
        self._bar: Any = None
        self._result = ""
        self._last_update = 0.0

    def __enter__(self) -> Progress:
        """Put the empty bar up."""
        if self.where == "notebook":
            from IPython.display import display

            self._bar = display(_bundle(""), raw=True, display_id=True)
        elif self.where == "terminal":
            from tqdm import tqdm

            layout = "{desc}|{bar}| {elapsed}<{remaining}"
            self._bar = tqdm(total=self.epochs, file=sys.stdout, leave=False, bar_format=layout)
        return self

    def update(self, done: float, loss: float) -> None:
        """Show that ``done`` epochs, fractions included, have passed with this loss."""
        now = time.monotonic()
        if self.where == "silent" or now - self._last_update < INTERVAL:
            return
        self._last_update = now
        text = f"{done:.1f} of {self.epochs} epochs, loss {loss:.4g}"
        if self.where == "notebook":
            bar = f'<progress value="{done:.4g}" max="{self.epochs}"></progress>'
            self._bar.update(_bundle(f"<span>{bar} {text}</span>"), raw=True)
        else:
            self._bar.n = done
            self._bar.set_description_str(text)

    def finish(self, result: str) -> None:
        """Keep the line that is to be printed when the bar has gone."""
        self._result = result

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take the bar away, whatever happened, and print the result if there is one."""
        if self.where == "silent":
            return
        if self.where == "notebook":
            self._bar.update(_bundle(""), raw=True)
        else:
            self._bar.close()
        if self._result:
            print(self._result)


def _bundle(html: str) -> dict[str, str]:
    return {"text/html": html, "text/plain": ""}
