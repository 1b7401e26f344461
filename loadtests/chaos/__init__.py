"""Is an answer ever wrong, a call ever late, or anything ever lost, while the server and the wire are mistreated?"""
