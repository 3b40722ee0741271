"""Tools that make the course's derived files; ``make help`` lists the commands."""
