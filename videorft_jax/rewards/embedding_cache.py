"""Frame embeddings kept in memory and, if asked, in a folder of .npy files.

A clip's frames meet the same frozen SigLIP in every epoch. The decision worth knowing: the key is a
hash of everything that decides the numbers (media contract, clip, number of frames, SigLIP's image
side), so an entry is never checked for staleness: what does not fit is not found.
"""

import collections
import hashlib
import logging
import os

import jax
import numpy as np

from videorft_jax.models.siglip.hf_folder import Siglip

logger = logging.getLogger(__name__)

_VERSION = 1  # raise when the same frames and weights begin to give other embeddings
_MAX_HEADER = 256  # bytes of an .npy header, for a bound on what is opened


def identify_siglip(siglip: Siglip) -> str:
    """Makes the hex digest of SigLIP's image side: config, vision weights and their dtype.

    Raises:
      ValueError: the weights are spread over processes.
    """
    digest = hashlib.sha256(repr(siglip.config).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(siglip.params["vision"]):
        if not getattr(leaf, "is_fully_addressable", True):
            raise ValueError(
                "siglip: its weights are spread over processes; identify it before placing it"
            )
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def identify_frames(frames: np.ndarray) -> str:
    """Makes the hex digest of decoded frames uint8 [n, h, w, 3], the key under which embeddings are
    kept.

    The pixels themselves decide the numbers: another file of the same name, another span of the
    same file and another folder of media all give other pixels, and equal pixels may share.
    """
    digest = hashlib.blake2b(repr((frames.dtype.str, frames.shape)).encode(), digest_size=32)
    digest.update(np.ascontiguousarray(frames).data)
    return digest.hexdigest()


class EmbeddingCache:
    """Keeps embeddings float32 [n, D] by clip, the least recently used leave the memory first.

    Args:
      contract: digest of the media contract that the frames were read under.
      siglip: digest of the weights, `identify_siglip`.
      num_clips: most clips kept in memory (16 frames of so400m take 74 kB).
      folder: where entries are also kept as .npy files; None: memory only.

    Attributes:
      num_damaged: files that could not be read; they are computed anew.
    """

    def __init__(
        self, contract: str, siglip: str, *, num_clips: int = 4096, folder: str | None = None
    ):
        if num_clips < 1:
            raise ValueError(f"embedding cache: num_clips is {num_clips}; give 1 or more")
        self._identity = (_VERSION, contract, siglip)
        self._num_clips, self._folder = num_clips, folder
        self._entries: collections.OrderedDict[str, np.ndarray] = collections.OrderedDict()
        self.num_damaged = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, clip: str, num_frames: int, width: int) -> np.ndarray | None:
        """Embeddings [n, width], n at most `num_frames`, of a clip; None when not there.

        `clip` names the media and the part of it that is shown, best by a hash of the file.
        """
        key = self._key(clip, num_frames)
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        found = self._read(key, num_frames, width) if self._folder else None
        if found is not None:
            self._remember(key, found)
        return found

    def put(self, clip: str, num_frames: int, embeddings: np.ndarray) -> None:
        """Keeps a copy of the embeddings float32 [n, D] of a clip read as `num_frames` frames."""
        key = self._key(clip, num_frames)
        self._remember(key, np.array(embeddings, np.float32))
        if self._folder:
            path = self._path(key)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            temporary = f"{path}.{os.getpid()}.tmp"
            with open(temporary, "wb") as file:
                np.save(file, self._entries[key], allow_pickle=False)
            os.replace(temporary, path)

    def _remember(self, key: str, embeddings: np.ndarray) -> None:
        embeddings.setflags(write=False)
        self._entries[key] = embeddings
        self._entries.move_to_end(key)
        while len(self._entries) > self._num_clips:
            self._entries.popitem(last=False)

    def _key(self, clip: str, num_frames: int) -> str:
        return hashlib.sha256(repr((*self._identity, num_frames, clip)).encode()).hexdigest()

    def _path(self, key: str) -> str:
        assert self._folder is not None  # A cache in memory has no files.
        return os.path.join(self._folder, key[:2], f"{key}.npy")

    def _read(self, key: str, num_frames: int, width: int) -> np.ndarray | None:
        path = self._path(key)
        try:
            if os.path.getsize(path) > num_frames * width * 4 + _MAX_HEADER:
                raise ValueError("larger than its embeddings can be")
            # Mapped, so that a header cannot claim more memory than the file has.
            array = np.array(np.load(path, mmap_mode="r", allow_pickle=False))
            shape = array.shape
            fits = array.ndim == 2 and 1 <= shape[0] <= num_frames and shape[1] == width
            if not fits or array.dtype != np.float32 or not np.isfinite(array).all():
                raise ValueError(f"{array.dtype} {shape} or not finite")
            return array
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError, SyntaxError, TypeError) as error:
            self.num_damaged += 1
            logger.warning("%s: damaged (%s): computed anew", path, error)
            return None
