"""The DICOM network of a node: what it takes in, and what it sends.

Importing this package fixes how pynetdicom behaves in the whole process:

- objects are sent from their file as they lie there, never decoded and encoded again;
- only storage classes of the standard are taken in;
- messages are not formatted for a log that nobody reads (it costs time per message).
"""

from pynetdicom import _config

_config.STORE_SEND_CHUNKED_DATASET = True
_config.UNRESTRICTED_STORAGE_SERVICE = False
_config.LOG_HANDLER_LEVEL = "none"

VERIFICATION = "1.2.840.10008.1.1"  # SOP class of C-ECHO, PS3.4 annex A
