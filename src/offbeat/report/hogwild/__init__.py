"""What is shown of runs of `offbeat hogwild`: a table, pictures, a page."""

from .page import write_page, write_pages
from .table import print_outcomes

__all__ = ["print_outcomes", "write_page", "write_pages"]
