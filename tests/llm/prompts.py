"""Prompts with a rule to learn: 'Yes' where the item is good; their token counts are about right."""

from recranker.tasks.protocol import Prompt, Question

TITLES = ("Alien", "Heat", "Brazil", "Stalker", "Fargo", "Ran", "Jaws", "Rope")


def toy_prompts(count: int) -> list[Prompt]:
    """``train/0`` .. with two yes-or-no questions each and, in every other one, a list of three."""
    return [toy_prompt(number) for number in range(count)]


def toy_prompt(number: int) -> Prompt:
    title, other = TITLES[number % 8], TITLES[(number + 3) % 8]
    questions = [
        Question("pointwise", f"\nIs {title} good? Yes", ("No", "Yes"), (title,), "Yes", tokens=20),
        Question("pairwise", f"\nIs {other} bad? No", ("No", "Yes"), (other, title), "No", tokens=20),
    ]
    if number % 2:
        best = "ABC"[number // 2 % 3]
        text = f"\nA. Fargo\nB. Ran\nC. Jaws\nThe best is {best}:"
        questions.append(Question("listwise", text, ("A", "B", "C"), ("Fargo", "Ran", "Jaws"), best, tokens=40))
    return Prompt(f"train/{number}", f"Liked:\n{title}\n{other}\n", tuple(questions), prefix_tokens=30)
