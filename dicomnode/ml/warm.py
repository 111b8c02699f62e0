"""Loaded models kept warm within a memory budget."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

from dicomnode.ml.inference import ladder
from dicomnode.ml.inference.engine import LoadedModel

USUAL_BUDGET_BYTES = 4 * 1024**3


class WarmModels:
    """Models by name or version; the least recently used are let go when the others need the room."""

    def __init__(self, *, budget_bytes: int = USUAL_BUDGET_BYTES) -> None:
        """Begin without a model; one that is larger than the budget is kept as long as it is the only one."""
        self._budget_bytes = budget_bytes
        self._loaded: OrderedDict[Hashable, LoadedModel] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, load: Callable[[], LoadedModel]) -> LoadedModel:
        """Give the model of this key, loaded at its first use; what `load` raises passes through."""
        with self._lock:
            if key not in self._loaded:
                self._loaded[key] = load()
            self._loaded.move_to_end(key)
            self._make_room()
            return self._loaded[key]

    @property
    def keys(self) -> tuple[Hashable, ...]:
        """What is loaded, the least recently used first."""
        with self._lock:
            return tuple(self._loaded)

    def _make_room(self) -> None:
        before = len(self._loaded)
        while len(self._loaded) > 1 and self._size_bytes() > self._budget_bytes:
            self._loaded.popitem(last=False)
        if len(self._loaded) < before:
            ladder.release()

    def _size_bytes(self) -> int:
        return sum(model.size_bytes for model in self._loaded.values())
