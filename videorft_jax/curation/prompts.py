"""Templates of prompts: text files with named slots, filled in one pass, data inside fences.

Text that comes from data or from a model stands between fence lines whose name holds a digest of
that text. The text cannot contain its own fence, and the same text always has the same fence, so
that keys and prefix caches hold.
"""

import dataclasses
import hashlib
import pathlib
import re
import tomllib

FOLDER = pathlib.Path(__file__).parent / "templates"
SLOT = re.compile(r"\{([a-z_]+)\}")
FIELD = re.compile(r"[A-Za-z]\w*", re.ASCII)
SALT = "videorft-curation-1"
# template: the slots that it must hold, each exactly once
SLOTS = {
    "describe_video": {"num_frames", "before", "people"},
    "describe_image": {"focus", "field"},
    "think": {"description", "question"},
    "revise": {"question", "chain"},
    "repair": {"fault"},
}


@dataclasses.dataclass(frozen=True)
class Template:
    """A system text and a user text; `digest` is sha256 over both."""

    name: str
    system: str
    user: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"{self.system}\0{self.user}".encode()).hexdigest()

    def fill(self, **values: str) -> str:
        """The user text; braces inside the values stay text."""
        return SLOT.sub(lambda match: values.get(match[1], match[0]), self.user)


def load_templates(folder: str = "") -> dict[str, Template]:
    """The templates by name: those of `folder`, and the project's own where it has none.

    A file holds the system text, a line of three dashes, and the user text.
    Raises ValueError for a folder that is not there, a file of another name, since nobody would
    read it, and one that lacks the line or a slot, or has one that nobody fills.
    """
    if folder:
        try:
            found = {path.name for path in pathlib.Path(folder).iterdir() if path.suffix == ".txt"}
        except OSError as error:
            raise ValueError(
                f"data.templates={folder}: {error.strerror}; give the folder of your templates, or "
                "leave it empty to use the project's own"
            ) from None
        known = [f"{name}.txt" for name in SLOTS]
        if wrong := sorted(found - set(known)):
            raise ValueError(
                f"{pathlib.Path(folder) / wrong[0]}: is no template; there are {', '.join(known)}"
            )
    return {name: _load(name, folder) for name in SLOTS}


def _load(name: str, folder: str) -> Template:
    own = pathlib.Path(folder or FOLDER) / f"{name}.txt"
    path = own if own.exists() else FOLDER / f"{name}.txt"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}; give a text file in UTF-8") from None
    system, line, user = text.partition("\n---\n")
    if not line:
        raise ValueError(f"{path}: has no line of three dashes; write system text, ---, user text")
    found = SLOT.findall(user)
    if set(found) != SLOTS[name] or len(found) != len(set(found)):
        wanted = ", ".join(f"{{{slot}}}" for slot in sorted(SLOTS[name]))
        raise ValueError(f"{path}: holds the slots {sorted(found)}; write exactly {wanted}")
    return Template(name, system.strip(), user.strip())


def load_families(folder: str = "") -> dict[str, tuple[str, str]]:
    """Families of images: name -> (field of the description, what to look at)."""
    path = pathlib.Path(folder or FOLDER) / "image_families.toml"
    path = path if path.exists() else FOLDER / "image_families.toml"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        found = {name: (own["field"], own["focus"]) for name, own in table.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: {error}; write [family] with field and focus") from None
    for name, (field, focus) in found.items():
        is_field = isinstance(field, str) and FIELD.fullmatch(field) and field != "caption"
        if not (is_field and isinstance(focus, str)):
            raise ValueError(
                f"{path}: [{name}] has field {field!r}; name it by letters, digits and _, other "
                "than caption, and write focus as a text"
            )
    if "general" not in found:
        raise ValueError(f"{path}: has no [general]; write it, for pictures of no other family")
    return found


def fence(name: str, text: str) -> str:
    """`text` between two lines that it cannot contain."""
    mark = hashlib.sha256(f"{SALT}\0{text}".encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"[[{name} {mark}]]\n{text}\n[[end of {name} {mark}]]"
