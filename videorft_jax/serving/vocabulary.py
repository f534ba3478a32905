"""The bytes of each token, so that a text can grow without being decoded from its start again."""

from tokenizers.pre_tokenizers import ByteLevel


class Vocabulary:
    """The bytes of the ids of a byte-level tokenizer, such as Qwen's."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self._added = {token: str(entry) for token, entry in added.items()}
        self._hidden = {token for token, entry in added.items() if entry.special}
        # Byte-level vocabularies write each byte as one printable character: printable bytes as
        # themselves, the others as the characters from 256 on, in order.
        printable = {ord(c) for c in ByteLevel.alphabet() if ord(c) < 256}
        others = [byte for byte in range(256) if byte not in printable]
        self._bytes = {chr(byte): byte for byte in printable}
        self._bytes |= {chr(256 + place): byte for place, byte in enumerate(others)}

    def read(self, token: int) -> bytes:
        """What a token adds to a text; control tokens add nothing."""
        return b"" if token in self._hidden else self.name(token)

    def name(self, token: int) -> bytes:
        """The bytes that a token stands for, those of its name where it is a control token."""
        if token in self._added:
            return self._added[token].encode()
        text = self._tokenizer.convert_ids_to_tokens(token)
        return b"" if text is None else bytes(self._bytes[char] for char in text)
