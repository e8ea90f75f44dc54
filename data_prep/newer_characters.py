"""Characters that engines treat in different ways, because their tables are of different versions of Unicode.

tokenizers 0.22.2 normalizes by Unicode 9 and knows the letters and digits of Unicode 16, and so does fastokens 0.3.5;
gigatoken 0.10.0 does both by Unicode 17. So NFC sorts and composes newer marks otherwise, and a newer letter is none to
the regular expression that finds the words. Both lists go to Unicode 18, for the next gigatoken;
tests/data_prep/test_engines.py looks for characters that are missing.
"""

import functools
import re

# Combining class or canonical decomposition since Unicode 10, and what such a decomposition begins with.
_NORMALIZED = """
5c8-5c9 7fd 897-89f 8ca-8d3 9fe c3c d3b-d3c eba 1715 1abf-1af0 1df6-1dfa a82c 105c9 105d2 105da 105e4 10d24-10d27
10d69-10d6d 10eab-10eac 10ecb-10ecf 10ef0-10efb 10efd-10eff 10f46-10f50 10f82-10f85 11070 1133b 11382-11385 1138b
1138e 11390-11391 113c2 113c5 113c7-113c8 113ce-113d0 1145e 11839-1183a 11935 11938 1193d-1193e 11943 119e0 11a34
11a47 11a99 11d42 11d44-11d45 11d97 11f41-11f42 1611e 16121-16129 1612f 16d63 16d67-16d6a 16ff0-16ff1 1d127-1d128
1d250-1d252 1d25b-1d25c 1d25f 1d280-1d281 1e08f 1e130-1e136 1e2ae 1e2ec-1e2ef 1e4ec-1e4ef 1e5ee-1e5ef 1e6e3 1e6e6
1e6ee-1e6ef 1e6f5
"""
# Letters, marks and numbers that have another general category in Unicode 18 than in Unicode 16.
_CLASSIFIED = """
295 558 58b-58c 5c8-5c9 88f b53-b54 c5c cdc 1acf-1af0 208f 209d-209f a7ce-a7cf a7d2 a7d4 a7dd a7e2 a7f1 ab6c-ab6d
107bb-107bf 10940-10959 10ec5-10ec7 10ecb-10ecf 10ed9-10eee 10ef0-10efb 11b0a 11b60-11b67 11db0-11ddb 11de0-11de9
11df0-11df1 1246f 12475-1247f 12550-12686 16ea0-16eb8 16ebb-16ed3 16ff2-16ff6 187f8-187ff 18cd6-18cda 18d09-18d20
18d80-18df2 18e00-19191 191a0-191d2 1b123-1b128 1b168 1d127-1d128 1d250-1d252 1d25b-1d25c 1d25f 1d280-1d281 1d6a6
1df1f-1df24 1df2b-1df81 1df90-1df96 1dfcd-1dfff 1e6c0-1e6de 1e6e0-1e6f5 1e6fe-1e6ff 2b73a-2b73f 2b81e 2cea2-2cead
323b0-33479 3d000-3fc3f
"""
NEWER_CHARACTERS = [
    (int(bounds[0], 16), int(bounds[-1], 16))
    for bounds in (word.split("-") for word in (_NORMALIZED + _CLASSIFIED).split())
]  # first and last code point of each range


@functools.cache
def _patterns() -> list[tuple[bytes, re.Pattern[bytes]]]:
    """What these characters are in UTF-8: for each first byte, a pattern that finds all that begin with it."""
    ends: dict[bytes, dict[bytes, bytes]] = {}  # first byte -> the bytes between -> a class of last bytes
    for first, last in NEWER_CHARACTERS:
        for block in range(first - first % 64, last + 1, 64):  # in which only the last byte differs
            low, high = chr(max(first, block)).encode(), chr(min(last, block + 63)).encode()
            found = ends.setdefault(low[:1], {})
            found[low[1:-1]] = found.get(low[1:-1], b"") + re.escape(low[-1:]) + b"-" + re.escape(high[-1:])
    patterns = []
    for lead, found in sorted(ends.items()):
        choices: dict[bytes, list[bytes]] = {}  # by second byte, so that few are tried
        for middle, last_bytes in found.items():
            choices.setdefault(middle[:1], []).append(re.escape(middle[1:]) + b"[" + last_bytes + b"]")
        tails = [re.escape(second) + b"(?:" + b"|".join(rest) + b")" for second, rest in choices.items()]
        patterns.append((lead, re.compile(re.escape(lead) + b"(?:" + b"|".join(tails) + b")")))
    return patterns


def has_newer_character(text: str) -> bool:
    """Whether a text has one of these characters.

    Fastest after something else has asked for the text in UTF-8, which Python keeps: about 1 ns a byte in most scripts,
    5 in those whose characters begin with the same bytes as some of these.
    """
    if text.isascii():
        return False
    content = text.encode("utf-8")
    return any(lead in content and pattern.search(content) is not None for lead, pattern in _patterns())
