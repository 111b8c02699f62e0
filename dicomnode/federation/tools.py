"""What every story of the aggregator is handed."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dicomnode.federation.blobs import BlobFolder
from dicomnode.federation.ledger import Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The figures that an operator sets."""

    strategy: str  # a name in merging.STRATEGIES
    eta: float
    clip_factor: float  # in median norms; 0: updates are not shortened
    maximum_norm_factor: float
    maximum_blob_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """The rooms of one aggregator, opened once per process."""

    name: str  # audience of tokens and updates
    ledger: Ledger
    blobs: BlobFolder
    key: Ed25519PrivateKey
    rules: Rules
    now: Callable[[], datetime]
