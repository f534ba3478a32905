"""The data card: every number in it is counted from the files of the run."""

import collections
import json

from videorft_jax.curation.agreement import Null
from videorft_jax.curation.card_sections import say_audit, say_cost, say_difficulty, say_lengths
from videorft_jax.curation.counts import Counts
from videorft_jax.curation.difficulty import QUESTIONS
from videorft_jax.curation.licences import Terms, list_layers, warn_of_terms
from videorft_jax.curation.options import STAGES, CurationOptions
from videorft_jax.curation.pipeline import Pipeline
from videorft_jax.curation.stage_files import SETS, SFT
from videorft_jax.curation.tables import LIST

LIMITS = (
    "A right answer does not prove the chain that leads to it. Texts are machine-made and may"
    " repeat errors of the models above."
)
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"))


def write_card(counts: Counts, pipeline: Pipeline) -> str:
    """The text of README.md."""
    options = pipeline.options
    size = next((name for most, name in SIZES if counts.rl < most), "n>1M")
    front = [
        "---", "license: other", "license_name: see-the-card",
        "license_link: README.md#licences-and-terms", "language: [en]",
        "pretty_name: Curated chains of thought about videos", f"size_categories: [{size}]",
        "task_categories: [video-text-to-text, visual-question-answering]",
        "annotations_creators: [machine-generated]",
        f"source_datasets: {json.dumps(sorted(counts.rl_sources), ensure_ascii=False)}",
        "tags: [synthetic, chain-of-thought, reinforcement-learning, video-reasoning]",
        *_tables(counts), "---", "",
    ]  # fmt: skip
    body = [
        "# Curated chains of thought", "", *warn(counts, options), "",
        "Questions about clips and pictures, with machine-made chains of thought whose answers",
        "equal the source's. Media are not part of this set; paths are relative to your own copy.",
        "", "## Acceptance by stage", "", *_funnel(counts), "", "## Where records ended", "",
        *_table("ended at", counts.ended), "", "## Leaks found in revised chains, by rule", "",
        *_table("rule", counts.leaks), "",
        "## Open answers against those of other questions", "", *_nulls(counts), "",
        "## Accepted, by source and by type", "",
        *_table("source", counts.sources), "", *_table("type", counts.types), "",
        "## Lengths", "", *say_lengths(counts), "",
        "## Difficulty", "", *say_difficulty(counts), "", "## Audit", "", *say_audit(counts), "",
        "## Cost", "", *say_cost(counts.usage, options), "",
        "## Models", "", *_models(options), "", *_table("returned name", counts.models), "",
        "## Licences and terms", "", *_terms(counts, options), "", "## Templates", "",
        *(f"- {name}: `{template.digest}`" for name, template in pipeline.templates.items()), "",
        f"Media contract: `{json.dumps(options.contract.to_dict(), sort_keys=True)}`", "",
        "## Known limits", "",
        " ".join([LIMITS, *say_audit(counts)]),
    ]  # fmt: skip
    return "\n".join([*front, *body]) + "\n"


def _tables(counts: Counts) -> list[str]:
    """The configs of the hub: each set as one typed table."""
    configs, infos = ["configs:"], ["dataset_info:"]
    for name, file in SETS.items():
        configs += [f"- config_name: {name}", f"  data_files: [{{split: train, path: {file}}}]"]
        columns = counts.columns.get(file, {})
        if not columns:
            continue
        infos += [f"- config_name: {name}", "  features:"]
        for column, kind in columns.items():
            type_ = "sequence: string" if kind == LIST else f"dtype: {kind}"
            infos.append(f"  - {{name: {json.dumps(column)}, {type_}}}")
        number = counts.accepted if file == SFT else counts.rl
        infos.append(f"  splits: [{{name: train, num_examples: {number}}}]")
    return [*configs, *(infos if len(infos) > 1 else [])]


def warn(counts: Counts, options: CurationOptions) -> list[str]:
    """What a person must decide or finish before the sets are published, in lines of the card."""
    lines = [f"> {line}" for line in warn_of_terms(_layers(counts, options))]
    if not options.benchmarks:
        lines.append("> Not decontaminated: no benchmark files were given.")
    if counts.difficulty.get("stale"):
        lines.append(
            f"> The difficulty is of other questions and is left out: run videorft pass_rate on "
            f"{QUESTIONS} again."
        )
    if counts.unmet_labels:
        lines.append(f"> {counts.unmet_labels} labels of the audit are of other records.")
    if counts.pending:
        lines.append(f"> Not finished: {counts.pending} records wait for replies.")
    if counts.revised >= 20 and counts.unchanged > 0.8 * counts.revised:
        lines.append("> More than 80 % of the chains came back unchanged from the revision.")
    return lines


def _funnel(counts: Counts) -> list[str]:
    rows = (
        ("records in the pool", counts.pool),
        ("quarantined (row or media)", counts.quarantined),
        ("duplicates left out", counts.duplicates),
        ("known from a benchmark, left out", counts.contaminated),
        ("asked by a benchmark of another clip, noted", counts.noted),
        ("distinct clips", counts.clusters),
        ("held out for validation", counts.held_out),
        ("clips described", counts.described_clips),
        ("questions asked", counts.asked),
        ("chains without a readable answer", counts.unparseable),
        ("sentences cut that imitate marks of the prompts", counts.cut),
        ("right by the strict rules", counts.right),
        ("revised on the frames", counts.revised),
        ("came back unchanged", counts.unchanged),
        ("accepted", counts.accepted),
        ("with a suspect label, left out of the RL set", counts.suspects),
        ("in the RL set", counts.rl),
    )
    share = f"{counts.accepted / counts.asked:.1%}" if counts.asked else "none asked"
    lines = [
        "| stage | number |",
        "|---|---|",
        *(f"| {name} | {value:,} |" for name, value in rows),
    ]
    return [*lines, "", f"Accepted of the questions asked: {share}."]


def _table(name: str, counter: collections.Counter) -> list[str]:
    rows = sorted(counter.items(), key=lambda item: (-item[1], item[0]))
    return [f"| {name} | number |", "|---|---|", *(f"| {_cell(k)} | {v:,} |" for k, v in rows)]


def _nulls(counts: Counts) -> list[str]:
    """The groups of open answers with the similarity that they had to exceed."""
    lines = ["| group | answers | AUC | threshold |", "|---|---|---|---|"]
    for name, fields in counts.nulls.items():
        null = Null(**fields)
        limit = f"{null.threshold:.3f}" if null.is_informative else "none: similarity uninformative"
        cells = (_cell(name), f"{null.num_records:,}", f"{null.auc:.3f}", limit)
        lines.append(f"| {' | '.join(cells)} |")
    return lines if counts.nulls else ["Open answers were judged by the strict rules alone."]


def _models(options: CurationOptions) -> list[str]:
    lines = ["| stage | model | revision | price as of |", "|---|---|---|---|"]
    for stage in STAGES:
        end = options.endpoints[stage]
        as_of = end.price.as_of if end.price else ""
        lines.append(f"| {' | '.join(map(_cell, (stage, end.model, end.revision, as_of)))} |")
    return lines


def _layers(counts: Counts, options: CurationOptions) -> list[tuple[str, str, Terms]]:
    """Terms of the sources that the sets hold, of their media, and of the models."""
    ends = {f"{options.endpoints[s].model} ({s})": options.endpoints[s].terms for s in STAGES}
    used = {name: options.licences[name] for name in counts.rl_sources if name in options.licences}
    return list_layers(used, ends)


def _terms(counts: Counts, options: CurationOptions) -> list[str]:
    """The table of licences; a person decides what they allow together."""
    lines = ["| layer | of | licence or clause | training | where | read on |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for layer, name, own in _layers(counts, options):
        cells = (layer, name, own.clause or "not given", own.allows_training,
                 own.url or "not given", own.read_on or "never")  # fmt: skip
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return lines


def _cell(text: object) -> str:
    """Text of data as a cell of a table: one line, no markup."""
    plain = "".join(c if c.isprintable() else " " for c in str(text))[:120]
    for mark, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;"), ("`", "'")):
        plain = plain.replace(mark, name)
    return plain
