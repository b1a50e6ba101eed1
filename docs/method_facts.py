"""What a page about a method needs beside its docstring: the equation in LaTeX, and where it was published.

A new built-in method gets one entry here; tests/docs/test_generated_pages.py names those that have none.
J has the task gradients g_i as its K rows, G = J J^T, and parameters move along -d.
"""

from __future__ import annotations

from typing import NamedTuple


class Facts(NamedTuple):
    """The equation (LaTeX, without dollars) and the papers: (title, address)."""

    equation: str
    papers: tuple[tuple[str, str], ...] = ()


def arxiv(title: str, number: str) -> tuple[str, str]:
    return title, f"https://arxiv.org/abs/{number}"


COST = ("Symmetry teleportation for multi-task learning (COST)", "https://arxiv.org/abs/2503.04046")
BILB = arxiv("Bilevel loss balancing for multi-task learning (LDC-MTL)", "2502.08585")
JACOBIAN_DESCENT = arxiv("Jacobian descent for multi-objective optimization", "2406.16232")
IMTL = ("Towards impartial multi-task learning", "https://openreview.net/forum?id=IMPnRXEWpvr")
NASH = arxiv("Multi-task learning as a bargaining game", "2202.01017")

FACTS: dict[str, Facts] = {
    "aligned-mtl": Facts(
        r"d = J^\top B u, \qquad B = \sigma\, V \Lambda^{-1/2} V^\top, \qquad G = V \Lambda V^\top",
        (arxiv("Independent component alignment for multi-task learning", "2305.19000"),),
    ),
    "bilb4mtl": Facts(
        r"d = \nabla_x \left( \tfrac{1}{S} \sum_i \sigma_i(W)\, \ell_i(x) "
        r"+ \lambda \sum_i \left| \tau_i \ell_i(x) - \tau_{i+1} \ell_{i+1}(x) \right| \right), "
        r"\qquad \ell_i \ \text{normalised}",
        (BILB,),
    ),
    "bilb4mtl-double-loop": Facts(
        r"z_{n+1} = z_n - \beta \nabla_z g(W, z_n), \qquad "
        r"W \leftarrow W - \alpha \left( \nabla_W (g + \lambda f)(W, x) - \nabla_W g(W, z_N) \right)",
        (BILB,),
    ),
    "cagrad": Facts(
        r"d = \operatorname{argmax}_{d}\; \min_i \langle g_i, d \rangle \quad \text{subject to} \quad "
        r"\lVert d - g_0 \rVert \le c\, \lVert g_0 \rVert, \qquad g_0 = \tfrac{1}{K} \sum_i g_i",
        (arxiv("Conflict-averse gradient descent for multi-task learning", "2110.14048"),),
    ),
    "config": Facts(
        r"d = \left( \sum_i \langle g_i, u \rangle \right) u, \qquad "
        r"u = \frac{U^{+} \mathbf{1}}{\lVert U^{+} \mathbf{1} \rVert}, \qquad U_i = \frac{g_i}{\lVert g_i \rVert}",
        (arxiv("ConFIG: towards conflict-free training of physics informed neural networks", "2408.11104"),),
    ),
    "dualproj": Facts(
        r"d = \operatorname{argmin}_{d}\; \lVert d - g_0 \rVert^2 \quad \text{subject to} \quad J d \ge 0",
        (arxiv("Gradient episodic memory for continual learning", "1706.08840"), JACOBIAN_DESCENT),
    ),
    "dwa": Facts(
        r"w_i(t) = \frac{\exp(r_i(t) / T)}{\sum_j \exp(r_j(t) / T)}, \qquad r_i(t) = \frac{L_i(t-1)}{L_i(t-2)}",
        (arxiv("End-to-end multi-task learning with attention", "1803.10704"),),
    ),
    "fairgrad": Facts(
        r"d = J^\top w, \qquad w > 0 \ \text{solving} \quad G w = w^{-1/\alpha}",
        (arxiv("Fair resource allocation in multi-task learning", "2402.15638"),),
    ),
    "famo": Facts(
        r"w_i = \frac{z_i / L_i}{\sum_j z_j / L_j}, \qquad z = \operatorname{softmax}(u), \qquad "
        r"\delta_i = \log L_i^{\text{before}} - \log L_i^{\text{after}}",
        (arxiv("FAMO: fast adaptive multitask optimization", "2306.03792"),),
    ),
    "gls": Facts(
        r"w_i = \frac{1}{K L_i} \left( \prod_j L_j \right)^{1/K}",
        (arxiv("MultiNet++: multi-stream feature aggregation and geometric loss strategy", "1904.08492"),),
    ),
    "gradops": Facts(
        r"d = \sum_i w_i\, g_i', \qquad g_i' = g_i - \Pi_{S_i}\, g_i \ \text{ for every task in conflict}, \qquad "
        r"S_i = \operatorname{span}(g_j : j \ne i)",
        (arxiv("Gradient deconfliction via orthogonal projections onto subspaces (GradOPS)", "2503.03438"),),
    ),
    "imtl-g": Facts(
        r"d = \sum_i a_i g_i, \quad \sum_i a_i = 1, \qquad "
        r"\left\langle d, \tfrac{g_i}{\lVert g_i \rVert} \right\rangle \ \text{equal for all } i",
        (IMTL,),
    ),
    "imtl-l": Facts(r"\min_{\theta,\, s} \sum_i \left( e^{s_i} L_i - s_i \right), \qquad w_i = e^{s_i}", (IMTL,)),
    "ls": Facts(r"d = \sum_i u_i\, g_i, \qquad u_i \ge 0, \quad \sum_i u_i = 1 \quad (u_i = 1/K \text{ by default})"),
    "mgda": Facts(
        r"d = J^\top a, \qquad a = \operatorname{argmin}_{a \ge 0,\ \sum_i a_i = 1} \lVert J^\top a \rVert^2",
        (
            ("Multiple-gradient descent algorithm (Desideri 2012)", "https://doi.org/10.1016/j.crma.2012.03.014"),
            arxiv("Multi-task learning as multi-objective optimization", "1810.04650"),
        ),
    ),
    "nash-mtl": Facts(
        r"d = J^\top a, \qquad a > 0 \ \text{solving} \quad G a = 1/a \ \text{ (entry by entry)}", (NASH,)
    ),
    "pcgrad": Facts(
        r"g_i' \leftarrow g_i' - \frac{\langle g_i', g_j \rangle}{\lVert g_j \rVert^2}\, g_j "
        r"\ \text{ whenever } \langle g_i', g_j \rangle < 0, \qquad d = \sum_i g_i'",
        (arxiv("Gradient surgery for multi-task learning", "2001.06782"),),
    ),
    "rlw": Facts(
        r"w = \operatorname{softmax}(z), \qquad z \sim \mathcal{N}(0, I_K) \ \text{ in every step}",
        (arxiv("Reasonable effectiveness of random weighting", "2111.10603"),),
    ),
    "si": Facts(r"\min_\theta \sum_i \log L_i, \qquad w_i = \frac{1}{L_i}", (NASH,)),
    "stch": Facts(
        r"\min_\theta\; \mu \log \sum_i \exp\left( \frac{x_i}{\mu} \right), \qquad x_i = p_i (L_i - z_i^*)",
        (arxiv("Smooth Tchebycheff scalarization for multi-objective optimization", "2402.19078"),),
    ),
    "sum": Facts(r"d = \sum_i g_i"),
    "upgrad": Facts(
        r"d = \frac{1}{K} \sum_i P(g_i), \qquad P(g) = \operatorname{argmin}_{x:\, J x \ge 0} \lVert x - g \rVert^2",
        (JACOBIAN_DESCENT,),
    ),
    "uw": Facts(
        r"\min_{\theta,\, s} \tfrac{1}{2} \sum_i \left( e^{-s_i} L_i + s_i \right), "
        r"\qquad w_i = \tfrac{1}{2} e^{-s_i}",
        (arxiv("Multi-task learning using uncertainty to weigh losses", "1705.07115"),),
    ),
    "cosine": Facts(r"\text{conflict} \Longleftrightarrow \min_{i \ne j} \cos(g_i, g_j) < -\text{threshold}", (COST,)),
    "dominated": Facts(
        r"\text{conflict} \Longleftrightarrow \cos(g_i, g_0) < -\text{threshold}, \qquad g_0 = \tfrac{1}{K} \sum_j g_j",
        (COST,),
    ),
    "imbalance": Facts(
        r"\text{conflict} \Longleftrightarrow \frac{\max_i \lVert g_i \rVert}{\min_i \lVert g_i \rVert} > \text{ratio}",
        (COST,),
    ),
    "attention-qk": Facts(
        r"(W_Q, b_Q) \leftarrow M\, (W_Q, b_Q), \qquad (W_K, b_K) \leftarrow M^{-\top} (W_K, b_K) "
        r"\quad \text{per head}",
        (COST,),
    ),
    "linear-boundary": Facts(
        r"A \leftarrow M A, \quad b \leftarrow M b, \quad U_k \leftarrow U_k M^{-1} \ \text{ for every head } k",
        (COST,),
    ),
    "lora": Facts(
        r"\theta \leftarrow \theta + \Delta, \quad \Delta = B A \ \text{of low rank}, \qquad "
        r"L_i(\theta + \Delta) \approx L_i(\theta) \ \text{ for all } i",
        (COST,),
    ),
    "random": Facts(
        r"W_1[j,:] \leftarrow \lambda_j W_1[j,:], \quad W_2[:,j] \leftarrow \lambda_j^{-1} W_2[:,j], "
        r"\qquad \log \lambda_j \sim \mathcal{U}(-\text{bound}, \text{bound})",
        (COST,),
    ),
    "relu-rescaling": Facts(
        r"W_1[j,:] \leftarrow \lambda_j W_1[j,:], \quad b_1[j] \leftarrow \lambda_j b_1[j], \quad "
        r"W_2[:,j] \leftarrow \lambda_j^{-1} W_2[:,j], \qquad \lambda_j > 0",
        (COST,),
    ),
}
