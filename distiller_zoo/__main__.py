"""`python -m distiller_zoo` prints the README's table of methods from the registry."""

from .base import registry


def method_table() -> str:
    """A Markdown table: name, paper, weights with their terms, own flags."""
    lines = ["| `--distill` | paper | default weights | own flags |", "|---|---|---|---|"]
    for method in registry.values():
        weights = ", ".join(f"`-{f} {method.weights[f]:g}` {term}" for f, term in method.build.weighs.items())
        flags = ", ".join(f"`--{option.name}` ({option.default})" for option in method.options())
        lines.append(f"| `{method.name}` | {method.paper} | {weights} | {flags or '–'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(method_table())
