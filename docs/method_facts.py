"""What a page about a method needs beside its docstring: the equation in LaTeX, and where it was published.

A new built-in method gets one entry here, named as its page is (methods/NAME.md);
tests/docs/test_generated_pages.py names those that have none.
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
    "pcd": Facts(
        r"d' = \operatorname{argmin}_{d}\; \lVert d - h_p \rVert^2 \quad \text{subject to} \quad "
        r"\langle h_j, d \rangle \ge \tau_j \lVert h_j \rVert^2 \;\; (j \ne p), \qquad "
        r"d = \lVert g_p \rVert \frac{d'}{\lVert d' \rVert}, \qquad h_i = g_i / \sqrt{v_i}",
        (arxiv("Not all objectives are born equal: priority-constrained descent", "2606.29521"),),
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
    "random-teleport": Facts(
        r"W_1[j,:] \leftarrow \lambda_j W_1[j,:], \quad W_2[:,j] \leftarrow \lambda_j^{-1} W_2[:,j], "
        r"\qquad \log \lambda_j \sim \mathcal{U}(-\text{bound}, \text{bound})",
        (COST,),
    ),
    "relu-rescaling": Facts(
        r"W_1[j,:] \leftarrow \lambda_j W_1[j,:], \quad b_1[j] \leftarrow \lambda_j b_1[j], \quad "
        r"W_2[:,j] \leftarrow \lambda_j^{-1} W_2[:,j], \qquad \lambda_j > 0",
        (COST,),
    ),
    "auto-lambda": Facts(
        r"w \leftarrow w - \text{Adam}(a), \qquad a_i = -\sum_j \langle g_i, \nabla F_j \rangle, "
        r"\qquad F_j \ \text{the losses of a second batch}",
        (arxiv("Auto-Lambda: disentangling dynamic task relationships", "2202.03091"),),
    ),
    "capped-mgda": Facts(
        r"d = J^\top a, \qquad a = \operatorname{argmin}_{a} \lVert J^\top a \rVert^2 \quad \text{over} \quad "
        r"a \ge 0, \ \sum_i a_i = 1, \ a_i \le \frac{1}{\text{share} \cdot K}",
        (("Hu, Ho and Yu 2026", "https://arxiv.org/abs/2605.30452"),),
    ),
    "clipped": Facts(
        r"d \leftarrow d\, \min\left( 1, \frac{\text{max\_norm}}{\lVert d \rVert} \right) \quad \text{or} \quad "
        r"g_i \leftarrow g_i \min\left( 1, \frac{\text{max\_norm}}{\lVert g_i \rVert} \right)"
    ),
    "conicgrad": Facts(
        r"d = \operatorname{argmax}_{d}\; \min_i \langle g_i, d \rangle \quad \text{subject to} \quad "
        r"\langle g_0, d \rangle \ge c\, \lVert g_0 \rVert \lVert d \rVert, \ \lVert d \rVert = \lVert g_0 \rVert, "
        r"\qquad g_0 = \tfrac{1}{K} \sum_i g_i",
        (("ConicGrad (Hassanpour et al. 2025)", "https://arxiv.org/abs/2502.00217"),),
    ),
    "constant": Facts(r"d = \sum_i u_i\, g_i, \qquad u \ \text{as given}"),
    "cosmos": Facts(
        r"\min_\theta\; r^\top L - \lambda \cos(r, L), \qquad "
        r"w_i = r_i - \lambda \left( \frac{r_i}{\lVert r \rVert \lVert L \rVert} "
        r"- \cos(r, L) \frac{L_i}{\lVert L \rVert^2} \right)",
        (("COSMOS (Ruchte and Grabocka 2021)", "https://arxiv.org/abs/2103.13392"),),
    ),
    "cr-mogm": Facts(
        r"w_t = \alpha\, w_{t-1} + (1 - \alpha)\, \hat{w}_t, \qquad "
        r"\hat{w}_t \ \text{the weights of the method inside}",
        (
            (
                "On the convergence of stochastic multi-objective gradient manipulation and beyond",
                "https://openreview.net/forum?id=ScwfQ7hdwyP",
            ),
        ),
    ),
    "db-mtl": Facts(
        r"d = \max_j \lVert m_j \rVert\, \sum_i \frac{m_i}{\lVert m_i \rVert}, \qquad "
        r"m_i \leftarrow b_k m_i + (1 - b_k) \frac{g_i}{L_i}, \qquad b_k = \beta / k^\sigma",
        (("Dual-balancing for multi-task learning (DB-MTL)", "https://arxiv.org/abs/2308.12029"),),
    ),
    "ema": Facts(
        r"m_i \leftarrow \beta\, m_i + (1 - \beta)\, g_i, \qquad "
        r"d = A\left( \frac{m_1}{1 - \beta^{t_1}}, \ldots, \frac{m_K}{1 - \beta^{t_K}} \right)"
    ),
    "emtl": Facts(
        r"\min_\theta\; \sum_i L_i + \lambda \operatorname{Var}(r), \qquad r_i = \frac{L_i}{\lVert g_i \rVert}",
        (("Yuan and Zhang 2023", "https://arxiv.org/abs/2306.09373"),),
    ),
    "excess-mtl": Facts(
        r"w_i \leftarrow w_i \exp\left( \eta\, \frac{e_i}{e_i^0} \right), \qquad "
        r"e_i = \sum_p \frac{g_{ip}^2}{\sqrt{S_{ip}}}, \qquad S_{ip} \leftarrow S_{ip} + g_{ip}^2",
        (("Robust multi-task learning with excess risks (He et al. 2024)", "https://arxiv.org/abs/2402.02009"),),
    ),
    "forum": Facts(
        r"d = \sum_i l_i h_i + v\, g_q, \qquad (l, v) = \operatorname{argmin} "
        r"\left\lVert \sum_i l_i h_i + v\, g_q \right\rVert^2 - v \rho \lVert g_q \rVert^2, \qquad "
        r"h_i = \frac{\nabla F_i}{\lVert \nabla F_i \rVert}",
        (("FORUM: first-order multi-gradient bi-level optimisation", "https://arxiv.org/abs/2401.09257"),),
    ),
    "go4align": Facts(
        r"w_i = \operatorname{mean}_{j \in \text{group}(i)} v_j, \qquad v_i = p_i \frac{\sum_j L_j}{L_i}, \qquad "
        r"p_i \leftarrow \frac{p_i e^{-\eta L_i}}{\sum_j p_j e^{-\eta L_j}}",
        (("GO4Align: group optimization for multi-task alignment", "https://arxiv.org/abs/2404.07155"),),
    ),
    "graddrop": Facts(
        r"d_p = \sum_i \left[ \operatorname{sign}(g_{ip}) = s_p \right] g_{ip}, \qquad "
        r"\Pr(s_p = +1) = \tfrac{1}{2} \left( 1 + \frac{\sum_i g_{ip}}{\sum_i |g_{ip}|} \right)",
        (("Just pick a sign: gradient sign dropout (GradDrop)", "https://arxiv.org/abs/2010.06808"),),
    ),
    "gradnorm": Facts(
        r"\min_w \sum_i \left| w_i \lVert g_i \rVert - \bar{G}\, r_i^\alpha \right|, \qquad "
        r"\bar{G} = \tfrac{1}{K} \sum_j w_j \lVert g_j \rVert, \qquad "
        r"r_i = \frac{L_i / L_i(0)}{\tfrac{1}{K} \sum_j L_j / L_j(0)}",
        (arxiv("GradNorm: gradient normalization for adaptive loss balancing", "1711.02257"),),
    ),
    "gradvac": Facts(
        r"g_i' \leftarrow g_i' + \frac{\lVert g_i' \rVert \left( \rho_{ij} \sqrt{1 - \varphi^2} "
        r"- \varphi \sqrt{1 - \rho_{ij}^2} \right)}{\lVert g_j \rVert \sqrt{1 - \rho_{ij}^2}}\, g_j "
        r"\ \text{ whenever } \varphi = \cos(g_i', g_j) < \rho_{ij}, \qquad d = \sum_i g_i'",
        (arxiv("Gradient vaccine (GradVac)", "2010.05874"),),
    ),
    "imgrad": Facts(
        r"d = \frac{1}{1 + c^2} \left( g_0 + c\, \lVert g_0 \rVert \frac{g_w}{\lVert g_w \rVert} \right), \qquad "
        r"w = \operatorname{argmin}_w\; (1.5 - q) \langle g_w, g_0 \rangle "
        r"+ q\, c\, \lVert g_0 \rVert \lVert g_w \rVert, \qquad q = \cos(g_0, g_m)",
        (("IMGrad (Zhou et al. 2025)", "https://arxiv.org/abs/2503.08006"),),
    ),
    "imtl": Facts(
        r"d = \sum_i a_i e^{s_i} g_i, \quad \sum_i a_i = 1, \quad "
        r"\left\langle d, \tfrac{g_i}{\lVert g_i \rVert} \right\rangle \ \text{equal for all } i, \qquad "
        r"\min_s \sum_i \left( e^{s_i} L_i - s_i \right)",
        (IMTL,),
    ),
    "krum": Facts(
        r"d = g_{i^*}, \qquad i^* = \operatorname{argmin}_i \sum_{j \in N(i)} \lVert g_i - g_j \rVert^2, \qquad "
        r"N(i) \ \text{the } K - f - 2 \text{ nearest}",
        (("Krum (Blanchard et al. 2017)", "https://arxiv.org/abs/1703.02757"),),
    ),
    "layerwise": Facts(
        r"d = \left( A(J_1), A(J_2), \ldots \right), \qquad J = \left( J_1 \mid J_2 \mid \cdots \right) "
        r"\ \text{cut by layers}"
    ),
    "m-config": Facts(
        r"d = \frac{d_t}{\sqrt{s_t / (1 - \beta_2^t)} + \varepsilon}, \qquad "
        r"d_t = \operatorname{ConFIG}\left( \frac{m_1}{1 - \beta_1^{t_1}}, \ldots, "
        r"\frac{m_K}{1 - \beta_1^{t_K}} \right)",
        (arxiv("ConFIG: towards conflict-free training of physics informed neural networks", "2408.11104"),),
    ),
    "moco": Facts(
        r"d = Y^\top w, \qquad y_i \leftarrow y_i - \beta_t (y_i - h_i), \qquad "
        r"w \leftarrow \Pi_\Delta\left( w - \gamma_t (Y Y^\top + \rho I)\, w \right)",
        (("MoCo (Fernando et al. 2023)", "https://arxiv.org/abs/2210.12624"),),
    ),
    "modo": Facts(
        r"d = J_3^\top w, \qquad w \leftarrow \Pi_\Delta\left( w - \gamma (J_1 J_2^\top w + \rho w) \right), \qquad "
        r"J_1, J_2, J_3 \ \text{of independent batches}",
        (("MoDo (Chen, Fernando, Ying and Chen 2023)", "https://arxiv.org/abs/2305.20057"),),
    ),
    "moml": Facts(
        r"w \leftarrow w - \text{Adam}(a), \qquad a_i = -\sum_j m_j \langle g_i, \nabla F_j \rangle, "
        r"\qquad m = \operatorname{argmin}_{m \ge 0,\ \sum_j m_j = 1} "
        r"\Bigl\lVert \sum_j m_j \nabla_w F_j \Bigr\rVert^2",
        (("Multi-objective meta learning (Ye et al. 2021)", "https://arxiv.org/abs/2102.07121"),),
    ),
    "pbi": Facts(
        r"\min_\theta\; d_1 + \vartheta\, d_2, \qquad d_1 = \hat{r}^\top x, \quad "
        r"d_2 = \lVert x - d_1 \hat{r} \rVert, \quad x = L - z",
        (("MOEA/D (Zhang and Li 2007)", "https://doi.org/10.1109/TEVC.2007.892759"),),
    ),
    "pivrg": Facts(
        r"d = J^\top w, \qquad w > 0 \ \text{solving} \quad G w = \sqrt{p / w}, \qquad "
        r"p = K \operatorname{softmax}(s / T)",
        (("Revisiting fairness in multitask learning (code)", "https://github.com/jianke0604/MTLlib"),),
    ),
    "random": Facts(
        r"w \sim \operatorname{Dirichlet}(1, \ldots, 1) \ \text{ in every step, or another law with } "
        r"\mathbb{E}[w_i] = 1/K",
        (arxiv("Reasonable effectiveness of random weighting", "2111.10603"),),
    ),
    "row-normalised": Facts(
        r"d = c\, A\left( \frac{g_1}{\lVert g_1 \rVert}, \ldots, \frac{g_K}{\lVert g_K \rVert} \right), \qquad "
        r"c = \tfrac{1}{K} \sum_i \lVert g_i \rVert \ \text{(or as asked)}"
    ),
    "sdmgrad": Facts(
        r"d = \frac{J^\top w + \lambda g_0}{1 + \lambda}, \qquad "
        r"w = \operatorname{argmin}_{w \ge 0,\ \sum_i w_i = 1} \tfrac{1}{2} \lVert J^\top w + \lambda g_0 \rVert^2",
        (("SDMGrad (Xiao, Ban and Ji 2023)", "https://arxiv.org/abs/2305.18409"),),
    ),
    "task-weighted": Facts(r"d = A(u_1 g_1, \ldots, u_K g_K), \qquad u_i > 0"),
    "trimmed-mean": Facts(
        r"d_p = \operatorname{mean}\left( g_{(t+1)p}, \ldots, g_{(K-t)p} \right), \qquad "
        r"g_{(1)p} \le \cdots \le g_{(K)p} \ \text{ sorted in every coordinate}",
        (("Yin et al. 2018", "https://arxiv.org/abs/1803.01498"),),
    ),
    "wpcgrad": Facts(
        r"g_i' \leftarrow g_i' - \frac{\langle g_i', g_j' \rangle}{\lVert g_j' \rVert^2}\, g_j' "
        r"\ \text{ if } \langle g_i', g_j' \rangle < 0, \ j \text{ drawn before } i, \qquad d = \sum_i g_i'",
        (("WPCGrad (Bohn et al. 2024)", "https://arxiv.org/abs/2409.01793"),),
    ),
    "layer-conflict": Facts(
        r"\text{conflict} \Longleftrightarrow \min_{l,\, i \ne j} \cos(g_i^l, g_j^l) < -\text{threshold}, "
        r"\qquad g_i^l \ \text{the part of } g_i \text{ in layer } l",
        (("Recon (Shi et al. 2023)", "https://openreview.net/forum?id=ivwZO-HnzG_"),),
    ),
    "task-arithmetic": Facts(
        r"\theta = \theta_0 + \lambda \sum_t \tau_t, \qquad \tau_t = \theta_t - \theta_0",
        (arxiv("Editing models with task arithmetic", "2212.04089"),),
    ),
    "weight-average": Facts(r"\theta = \tfrac{1}{T} \sum_t \theta_t"),
    "ties": Facts(
        r"\theta = \theta_0 + \lambda \operatorname{mean}\{ \hat\tau_t : \operatorname{sign} \hat\tau_t = \gamma \}, "
        r"\qquad \gamma = \operatorname{sign} \sum_t \hat\tau_t, \qquad \hat\tau_t \ \text{the largest of } \tau_t",
        (arxiv("TIES-merging: resolving interference when merging models", "2306.01708"),),
    ),
    "doge": Facts(
        r"\theta = \theta_0 + \sum_t \lambda_t (\tau_t + \Delta), \qquad "
        r"\lambda_t = \frac{\eta}{\lVert \tau_t \rVert_F}, "
        r"\qquad \Delta \leftarrow \Delta - \alpha\, (I - B B^\top) \nabla L(\Delta)",
        (arxiv("Modeling multi-task model merging as adaptive projective gradient descent", "2501.01230"),),
    ),
    "adamerging": Facts(
        r"\theta = \theta_0 + \sum_t c_t \tau_t, \qquad c \ \text{minimises the objective over } [0, 1]^T",
        (arxiv("AdaMerging: adaptive model merging for multi-task learning", "2310.02575"),),
    ),
    "ls-sweep": Facts(r"\min_\theta\ \sum_i p_i L_i(\theta) \quad \text{for every } p \text{ of a grid}"),
    "stch-sweep": Facts(
        r"\min_\theta\ \mu \log \sum_i \exp\left( p_i L_i(\theta) / \mu \right) "
        r"\quad \text{for every } p \text{ of a grid}",
        (arxiv("Smooth Tchebycheff scalarization for multi-objective optimization", "2402.19078"),),
    ),
    "gradops-sweep": Facts(
        r"\theta_\alpha \ \text{for every } \alpha \text{ of a grid}, \qquad "
        r"p \mapsto \operatorname{argmin}_\alpha \sum_i p_i L_i(\theta_\alpha)",
        (arxiv("Gradient deconfliction via orthogonal projections onto subspaces (GradOPS)", "2503.03438"),),
    ),
    "pareto-mtl": Facts(
        r"\min_\theta\ L(\theta) \quad \text{subject to} \quad (u_j - u_k)^\top L(\theta) \le 0 \ \text{for all } j",
        (arxiv("Pareto multi-task learning", "1912.12854"),),
    ),
    "epo": Facts(
        r"p_1 L_1(\theta) = \cdots = p_K L_K(\theta), \qquad \theta \ \text{Pareto-optimal}",
        (("Multi-task learning with user preferences (EPO)", "https://proceedings.mlr.press/v119/mahapatra20a.html"),),
    ),
    "pamal": Facts(
        r"\theta(a) = \sum_k a_k \theta_k, \qquad "
        r"\min_{\theta_1, \ldots, \theta_K} \mathbb{E}_{a \sim \mathrm{Dir}(p)} \sum_i a_i L_i(\theta(a))",
        (arxiv("Pareto manifold learning: tackling multiple tasks via ensembles of single-task models", "2210.09759"),),
    ),
    "cosmos-explorer": Facts(
        r"\min_{\theta, V} \mathbb{E}_{a \sim \mathrm{Dir}(p)} \left[ a^\top L - \lambda \cos(a, L) \right], \qquad "
        r"\text{first bias: } b + V a",
        (arxiv("Scalable Pareto front approximation for deep multi-objective learning", "2103.13392"),),
    ),
    "phn": Facts(
        r"\theta(a) = \theta_0 + \tfrac{1}{n} W h(a), \quad h(a) \in \mathbb{R}^n, \qquad "
        r"\min_{W, h} \mathbb{E}_{a \sim \mathrm{Dir}(p)} \sum_i a_i L_i(\theta(a))",
        (arxiv("Learning the Pareto front with hypernetworks", "2010.04104"),),
    ),
}
