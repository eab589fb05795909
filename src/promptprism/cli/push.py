"""``promptprism push``."""

from typing import Annotated

import typer

from promptprism.cli.options import Adapter, Json, argument, option
from promptprism.cli.output import Output, command


def push(
    adapter: Adapter,
    repository: Annotated[str, argument("OWNER/NAME", "Repository of the Hugging Face hub; made if new.")],
    private: Annotated[bool, typer.Option("--private", help="Nobody else may see it.")] = False,
    license: Annotated[
        str | None, option("ID", "Licence of what was learned, such as apache-2.0.", "--license")
    ] = None,
    json_file: Json = None,
) -> None:
    """Put an adapter on the Hugging Face hub, with a model card.

    Others open it as hf:OWNER/NAME. What its card says of data and machine can be read there. The token is
    that of 'hf auth login', or HF_TOKEN.
    """
    output = Output("push", json_file)
    from promptprism import hub

    address = hub.push(adapter, repository, private=private, license=license)
    opened = command("predict", f"{hub.PREFIX}{repository}", "IMAGE...")
    output.show(f"{address} has the adapter. Next: {opened}")
    output.write(adapter=str(adapter), repository=repository, address=address)
