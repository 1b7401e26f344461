"""Pure numerics: what a matrix is, which method solves it, the methods, and the proof of each answer.

    structure → select → registry → analyze → factorize → answer

Importing the engine loads NumPy and SciPy, never torch: a method is imported when it is first used.
"""
