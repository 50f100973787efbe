#!/usr/bin/env python3
"""Manual pages from texts that say the same thing already, so that it is said once.

    pages.py settings FRAME receptord.toml       the keys of the shipped configuration
    pages.py markdown FRAME PROTOCOL-plugin.md   a document

FRAME is a page with a line @TEXT@ where the text goes. The page is printed. Of Markdown only what our documents use is
known: headings, paragraphs, lists, tables, blocks of code, `code`, **bold** and [links](of-which-the-text-is-kept).
"""

import re
import sys

# What roff would read as something else than the character.
SPECIAL = {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti"}


def literal(text):
    """Text as it would be typed."""
    return "".join(SPECIAL.get(c, c) for c in text)


def line(text):
    """A line that is no request, whatever it begins with."""
    return r"\&" + text if text.startswith((".", "'")) else text


def prose(text):
    """Running text with its `code` and **bold**."""
    parts = re.split(r"(`[^`]+`|\*\*[^*]+\*\*)", re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", text))
    return line("".join(
        rf"\fB{literal(part.strip('`*'))}\fR" if part[:1] in ("`", "*") and len(part) > 2 else part.replace("\\", r"\e")
        for part in parts
    ))


def example(lines):
    return [".PP", ".RS 4", ".EX", *(line(literal(text)) for text in lines), ".EE", ".RE"]


def settings(text):
    """The shipped configuration: `#key = value` is a default, `#[table]` begins a table, what is indented is an example,
    and what stands before these is about them."""
    out, about, examples, table, heading = [], [], [], None, None

    def flush(*keys):
        """Writes what was gathered: about these keys, or about what the example is of."""
        nonlocal heading
        name = next((text for text in examples if text.strip()), "")
        if name == table:
            name = examples[1]
        if keys:
            out.extend(line for key in keys for line in (".TQ", rf"\fB{literal(key)}\fR"))
            out[-2 * len(keys)] = ".TP"
        elif name.startswith("["):
            out.append(".PP" if name == heading else ".SS " + name)
            heading = name
        elif name:
            out.extend([".TP", rf"\fB{literal(name.split(' = ')[0])}\fR"])
        else:
            out.append(".PP")
        inside = bool(keys or name) and not name.startswith("[")
        paragraphs = "\n".join(about).strip()
        for number, paragraph in enumerate(paragraphs.split("\n\n") if paragraphs else []):
            out.extend([".IP" if inside else ".PP"] if number else [])
            out.append(prose(paragraph.replace("\n", " ")))
        if examples:
            block = [".EX", *(line(literal(text)) for text in examples), ".EE"]
            out.extend([".IP", *block] if inside else [".PP", ".RS 4", *block, ".RE"])
        about.clear()
        examples.clear()

    # What stands before the first empty line is about the file as a whole, and the frame's to say.
    lines = iter(text.split("\n\n", 1)[1].splitlines() + [""])
    keys = []
    for text in lines:
        if key := re.match(r"#([a-z-]+ = .*)", text):
            keys.append(key[1])
            continue
        if keys:
            flush(*keys)
            keys = []
        if text.startswith("#     "):
            examples.append(text[6:])
            continue
        if examples:
            flush()
        if match := re.fullmatch(r"#(\[[a-z.-]+\])", text):
            table = heading = match[1]
            out.append(".SS " + table)
        if text.startswith("# "):
            about.append(text[2:])
        elif about and text == "#":
            about.append("")
        elif about:
            flush()
    return out


def table(rows):
    """A table, or what is one in Markdown, with the columns after the first as wide as there is room."""
    cells = [[cell.strip() for cell in row.strip().strip("|").split(" | ")] for row in rows]
    head, body = cells[0], cells[2:]
    width = max(len(row) for row in cells)
    out = [".PP", ".TS", "l" + " lx" * (width - 1) + "."]
    for row in ([head] if any(head) else []) + body:
        row += [""] * (width - len(row))
        out.append("\t".join("T{\n.na\n" + prose(cell.strip("|").strip()) + "\nT}" if cell.strip("|") else "" for cell in row))
    return out + [".TE"]


def markdown(text):
    out, paragraph = [], []
    lines = iter(text.splitlines()[1:] + [""])

    def flush():
        if paragraph:
            out.extend([".PP", prose(" ".join(paragraph))])
            paragraph.clear()

    rows = []
    for text in lines:
        if rows and not text.startswith("|"):
            out.extend(table(rows))
            rows = []
        if text.startswith("```"):
            flush()
            block = []
            for inner in lines:
                if inner.startswith("```"):
                    break
                block.append(inner)
            out.extend(example(block))
        elif text.startswith("#"):
            flush()
            out.append(".SH " + text.lstrip("# ").upper())
        elif text.startswith("|"):
            flush()
            rows.append(text)
        elif text.startswith("- "):
            flush()
            out.append(r".IP \(bu 2")
            item = [text[2:]]
            out.append(item)
        elif text.startswith("  ") and out and isinstance(out[-1], list):
            out[-1].append(text.strip())
        elif not text.strip():
            flush()
        else:
            paragraph.append(text.strip())
    return [prose(" ".join(entry)) if isinstance(entry, list) else entry for entry in out]


def main():
    kind, frame, source = sys.argv[1:]
    with open(source, encoding="utf-8") as file:
        text = {"settings": settings, "markdown": markdown}[kind](file.read())
    with open(frame, encoding="utf-8") as file:
        before, after = file.read().split("@TEXT@\n")
    sys.stdout.reconfigure(encoding="utf-8")
    sys.stdout.write(before + "\n".join(text) + "\n" + after)


if __name__ == "__main__":
    main()
