"""`python -m distiller_zoo` prints the README's tables of methods and of what goes with what, from the registries."""

from .base import Method, registry, transform_registry


def method_table() -> str:
    """A Markdown table: name, paper, weights with their terms, own flags."""
    lines = ["| `--distill` | paper | default weights | own flags |", "|---|---|---|---|"]
    for method in registry.values():
        weights = ", ".join(f"`-{f} {method.weights[f]:g}` {term}" for f, term in method.build.weighs.items())
        flags = ", ".join(f"`--{option.name}` ({option.default})" for option in method.options())
        lines.append(f"| `{method.name}` | {method.paper} | {weights} | {flags or '–'} |")
    return "\n".join(lines)


def _goes_with(method: Method, name: str) -> str:
    """A cell of `transform_table`."""
    if name in method.build.implies:
        return "always"
    flags = method.logit_flags()
    if any(method.weights[flag] for flag in flags):
        return "yes"
    return f"with `-{flags[0]}` above 0"


def transform_table() -> str:
    """A Markdown table: which logit transforms go with which methods; methods with equal lines share one."""
    titles = [f"`--{name}`" for name in transform_registry]
    header = ["`--distill`", *titles, "a temperature for each sample"]
    rows: dict[tuple[str, ...], list[str]] = {}
    for method in registry.values():
        cells = [_goes_with(method, name) for name in transform_registry]
        alone = "no" if method.build.one_temperature else "as `--curriculum_T`"
        rows.setdefault((*cells, alone), []).append(f"`{method.name}`")
    lines = [header, ["---"] * len(header), *([", ".join(names), *cells] for cells, names in rows.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(method_table(), transform_table(), sep="\n\n")
