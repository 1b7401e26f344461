"""Does every method fail safely? Hard systems, each sent to each method by name, and every answer checked."""
