"""One chip, a large external memory, and the same bits.

`chip` opens a device with a byte budget; `budget` is its account; `external` is the memory behind
it, and `external_file` the file that this may be; `streamed` is a parameter that lives there;
`residency` decides what is fetched and what leaves, from the `schedule` of the last time;
`transfer` moves bytes; `file_update` is the optimizer's pass over a file; `timeline` records it
all, and `report` tells it. `rehearsal` says beforehand what a step would need, `hardware` and
`clock` how long it would take elsewhere, and `retime` what a run would have taken on a faster link.
"""

from .chip import Chip, ChipMemoryError
from .external import ExternalMemory, ExternalMemoryError
from .hardware import Hardware
from .rehearsal import Rehearsal
from .sizes import parse_size, show_size
from .timeline import Timeline

__all__ = [
    "Chip",
    "ChipMemoryError",
    "ExternalMemory",
    "ExternalMemoryError",
    "Hardware",
    "Rehearsal",
    "Timeline",
    "parse_size",
    "show_size",
]
