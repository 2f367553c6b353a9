"""Read the machine code of graphs compiled for NVIDIA GPUs.

The code is stored as cubins, which are ELF files inside the exported graph.
"""

import struct
from collections.abc import Iterator

CUDA = 190  # the ELF header's e_machine of NVIDIA's code
INSTRUCTION = 16  # bytes per instruction, from sm_70 on
# The low 12 bits of a product on tensor cores, which round float32 to TF32.
HMMA = 0x23C


def kernels_on_tensor_cores(artifact: bytes) -> list[str]:
    """Return the names of the kernels in an exported graph that multiply on tensor cores."""
    names = []
    for name, code in kernels(artifact):
        words = struct.iter_unpack(f"<H{INSTRUCTION - 2}x", code[: len(code) // INSTRUCTION * INSTRUCTION])
        if any(word & 0xFFF == HMMA for (word,) in words):
            names.append(name)
    return sorted(names)


def kernels(artifact: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the machine code of each kernel in an exported graph."""
    start = -1
    while (start := artifact.find(b"\x7fELF\x02\x01", start + 1)) >= 0:
        elf = artifact[start:]
        if struct.unpack_from("<H", elf, 18)[0] != CUDA:
            continue
        (sections_at,) = struct.unpack_from("<Q", elf, 40)
        size, n_sections, names_index = struct.unpack_from("<HHH", elf, 58)
        sections = [struct.unpack_from("<IIQQQQ", elf, sections_at + i * size) for i in range(n_sections)]
        names = elf[sections[names_index][4] :]
        for name_at, _, _, _, offset, length in sections:
            name = names[name_at : names.index(b"\0", name_at)].decode()
            if name.startswith(".text."):
                yield name.removeprefix(".text."), elf[offset : offset + length]
