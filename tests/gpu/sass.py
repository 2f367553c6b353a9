"""What a graph that was compiled for an NVIDIA GPU does there, as its machine code says: cubins are ELF files inside the artifact."""

import struct
from collections.abc import Iterator

CUDA = 190  # e_machine of NVIDIA's
INSTRUCTION = 16  # bytes, from sm_70 on
HMMA = 0x23C  # in the low 12 bits: a product on tensor cores, which of float32 take no more than TF32


def kernels_on_tensor_cores(artifact: bytes) -> list[str]:
    """Names of the kernels in an exported graph that multiply on tensor cores."""
    found = []
    for name, code in kernels(artifact):
        words = struct.iter_unpack(f"<H{INSTRUCTION - 2}x", code[: len(code) // INSTRUCTION * INSTRUCTION])
        if any(word & 0xFFF == HMMA for (word,) in words):
            found.append(name)
    return sorted(found)


def kernels(artifact: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and machine code of each kernel in an exported graph."""
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
