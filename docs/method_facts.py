"""What a page about a method needs beside its docstring: the equation in LaTeX, and the title of its paper.

A new built-in method gets one equation here, named as its page is (methods/NAME.md), and its paper a title;
tests/docs/test_generated_pages.py names those that have none. The address of the paper is an attribute of the
method's class. J has the task gradients g_i as its K rows, G = J J^T, and parameters move along -d.
"""

from __future__ import annotations

EQUATIONS: dict[str, str] = {
    "aligned-mtl": (r"d = J^\top B u, \qquad B = \sigma\, V \Lambda^{-1/2} V^\top, \qquad G = V \Lambda V^\top"),
    "bilb4mtl": (
        r"d = \nabla_x \left( \tfrac{1}{S} \sum_i \sigma_i(W)\, \ell_i(x) "
        r"+ \lambda \sum_i \left| \tau_i \ell_i(x) - \tau_{i+1} \ell_{i+1}(x) \right| \right), "
        r"\qquad \ell_i \ \text{normalised}"
    ),
    "bilb4mtl-double-loop": (
        r"z_{n+1} = z_n - \beta \nabla_z g(W, z_n), \qquad "
        r"W \leftarrow W - \alpha \left( \nabla_W (g + \lambda f)(W, x) - \nabla_W g(W, z_N) \right)"
    ),
    "cagrad": (
        r"d = \operatorname{argmax}_{d}\; \min_i \langle g_i, d \rangle \quad \text{subject to} \quad "
        r"\lVert d - g_0 \rVert \le c\, \lVert g_0 \rVert, \qquad g_0 = \tfrac{1}{K} \sum_i g_i"
    ),
    "config": (
        r"d = \left( \sum_i \langle g_i, u \rangle \right) u, \qquad "
        r"u = \frac{U^{+} \mathbf{1}}{\lVert U^{+} \mathbf{1} \rVert}, \qquad U_i = \frac{g_i}{\lVert g_i \rVert}"
    ),
    "dualproj": (r"d = \operatorname{argmin}_{d}\; \lVert d - g_0 \rVert^2 \quad \text{subject to} \quad J d \ge 0"),
    "dwa": (r"w_i(t) = \frac{\exp(r_i(t) / T)}{\sum_j \exp(r_j(t) / T)}, \qquad r_i(t) = \frac{L_i(t-1)}{L_i(t-2)}"),
    "fairgrad": (r"d = J^\top w, \qquad w > 0 \ \text{solving} \quad G w = w^{-1/\alpha}"),
    "famo": (
        r"w_i = \frac{z_i / L_i}{\sum_j z_j / L_j}, \qquad z = \operatorname{softmax}(u), \qquad "
        r"\delta_i = \log L_i^{\text{before}} - \log L_i^{\text{after}}"
    ),
    "gls": (r"w_i = \frac{1}{K L_i} \left( \prod_j L_j \right)^{1/K}"),
    "gradops": (
        r"d = \sum_i w_i\, g_i', \qquad g_i' = g_i - \Pi_{S_i}\, g_i \ \text{ for every task in conflict}, \qquad "
        r"S_i = \operatorname{span}(g_j : j \ne i)"
    ),
    "imtl-g": (
        r"d = \sum_i a_i g_i, \quad \sum_i a_i = 1, \qquad "
        r"\left\langle d, \tfrac{g_i}{\lVert g_i \rVert} \right\rangle \ \text{equal for all } i"
    ),
    "imtl-l": (r"\min_{\theta,\, s} \sum_i \left( e^{s_i} L_i - s_i \right), \qquad w_i = e^{s_i}"),
    "ls": (r"d = \sum_i u_i\, g_i, \qquad u_i \ge 0, \quad \sum_i u_i = 1 \quad (u_i = 1/K \text{ by default})"),
    "mgda": (r"d = J^\top a, \qquad a = \operatorname{argmin}_{a \ge 0,\ \sum_i a_i = 1} \lVert J^\top a \rVert^2"),
    "nash-mtl": (r"d = J^\top a, \qquad a > 0 \ \text{solving} \quad G a = 1/a \ \text{ (entry by entry)}"),
    "pcd": (
        r"d' = \operatorname{argmin}_{d}\; \lVert d - h_p \rVert^2 \quad \text{subject to} \quad "
        r"\langle h_j, d \rangle \ge \tau_j \lVert h_j \rVert^2 \;\; (j \ne p), \qquad "
        r"d = \lVert g_p \rVert \frac{d'}{\lVert d' \rVert}, \qquad h_i = g_i / \sqrt{v_i}"
    ),
    "pcgrad": (
        r"g_i' \leftarrow g_i' - \frac{\langle g_i', g_j \rangle}{\lVert g_j \rVert^2}\, g_j "
        r"\ \text{ whenever } \langle g_i', g_j \rangle < 0, \qquad d = \sum_i g_i'"
    ),
    "rlw": (r"w = \operatorname{softmax}(z), \qquad z \sim \mathcal{N}(0, I_K) \ \text{ in every step}"),
    "si": (r"\min_\theta \sum_i \log L_i, \qquad w_i = \frac{1}{L_i}"),
    "stch": (r"\min_\theta\; \mu \log \sum_i \exp\left( \frac{x_i}{\mu} \right), \qquad x_i = p_i (L_i - z_i^*)"),
    "sum": (r"d = \sum_i g_i"),
    "upgrad": (
        r"d = \frac{1}{K} \sum_i P(g_i), \qquad P(g) = \operatorname{argmin}_{x:\, J x \ge 0} \lVert x - g \rVert^2"
    ),
    "uw": (
        r"\min_{\theta,\, s} \tfrac{1}{2} \sum_i \left( e^{-s_i} L_i + s_i \right), "
        r"\qquad w_i = \tfrac{1}{2} e^{-s_i}"
    ),
    "cosine": (r"\text{conflict} \Longleftrightarrow \min_{i \ne j} \cos(g_i, g_j) < -\text{threshold}"),
    "dominated": (
        r"\text{conflict} \Longleftrightarrow \cos(g_i, g_0) < -\text{threshold}, \qquad g_0 = \tfrac{1}{K} \sum_j g_j"
    ),
    "imbalance": (
        r"\text{conflict} \Longleftrightarrow \frac{\max_i \lVert g_i \rVert}{\min_i \lVert g_i \rVert} > \text{ratio}"
    ),
    "attention-qk": (
        r"(W_Q, b_Q) \leftarrow M\, (W_Q, b_Q), \qquad (W_K, b_K) \leftarrow M^{-\top} (W_K, b_K) "
        r"\quad \text{per head}"
    ),
    "linear-boundary": (
        r"A \leftarrow M A, \quad b \leftarrow M b, \quad U_k \leftarrow U_k M^{-1} \ \text{ for every head } k"
    ),
    "lora": (
        r"\theta \leftarrow \theta + \Delta, \quad \Delta = B A \ \text{of low rank}, \qquad "
        r"L_i(\theta + \Delta) \approx L_i(\theta) \ \text{ for all } i"
    ),
    "random-teleport": (
        r"W_1[j,:] \leftarrow \lambda_j W_1[j,:], \quad W_2[:,j] \leftarrow \lambda_j^{-1} W_2[:,j], "
        r"\qquad \log \lambda_j \sim \mathcal{U}(-\text{bound}, \text{bound})"
    ),
    "relu-rescaling": (
        r"W_1[j,:] \leftarrow \lambda_j W_1[j,:], \quad b_1[j] \leftarrow \lambda_j b_1[j], \quad "
        r"W_2[:,j] \leftarrow \lambda_j^{-1} W_2[:,j], \qquad \lambda_j > 0"
    ),
    "auto-lambda": (
        r"w \leftarrow w - \text{Adam}(a), \qquad a_i = -\sum_j \langle g_i, \nabla F_j \rangle, "
        r"\qquad F_j \ \text{the losses of a second batch}"
    ),
    "capped-mgda": (
        r"d = J^\top a, \qquad a = \operatorname{argmin}_{a} \lVert J^\top a \rVert^2 \quad \text{over} \quad "
        r"a \ge 0, \ \sum_i a_i = 1, \ a_i \le \frac{1}{\text{share} \cdot K}"
    ),
    "clipped": (
        r"d \leftarrow d\, \min\left( 1, \frac{\text{max\_norm}}{\lVert d \rVert} \right) \quad \text{or} \quad "
        r"g_i \leftarrow g_i \min\left( 1, \frac{\text{max\_norm}}{\lVert g_i \rVert} \right)"
    ),
    "conicgrad": (
        r"d = \operatorname{argmax}_{d}\; \min_i \langle g_i, d \rangle \quad \text{subject to} \quad "
        r"\langle g_0, d \rangle \ge c\, \lVert g_0 \rVert \lVert d \rVert, \ \lVert d \rVert = \lVert g_0 \rVert, "
        r"\qquad g_0 = \tfrac{1}{K} \sum_i g_i"
    ),
    "constant": (r"d = \sum_i u_i\, g_i, \qquad u \ \text{as given}"),
    "cosmos": (
        r"\min_\theta\; r^\top L - \lambda \cos(r, L), \qquad "
        r"w_i = r_i - \lambda \left( \frac{r_i}{\lVert r \rVert \lVert L \rVert} "
        r"- \cos(r, L) \frac{L_i}{\lVert L \rVert^2} \right)"
    ),
    "cr-mogm": (
        r"w_t = \alpha\, w_{t-1} + (1 - \alpha)\, \hat{w}_t, \qquad "
        r"\hat{w}_t \ \text{the weights of the method inside}"
    ),
    "db-mtl": (
        r"d = \max_j \lVert m_j \rVert\, \sum_i \frac{m_i}{\lVert m_i \rVert}, \qquad "
        r"m_i \leftarrow b_k m_i + (1 - b_k) \frac{g_i}{L_i}, \qquad b_k = \beta / k^\sigma"
    ),
    "ema": (
        r"m_i \leftarrow \beta\, m_i + (1 - \beta)\, g_i, \qquad "
        r"d = A\left( \frac{m_1}{1 - \beta^{t_1}}, \ldots, \frac{m_K}{1 - \beta^{t_K}} \right)"
    ),
    "emtl": (r"\min_\theta\; \sum_i L_i + \lambda \operatorname{Var}(r), \qquad r_i = \frac{L_i}{\lVert g_i \rVert}"),
    "excess-mtl": (
        r"w_i \leftarrow w_i \exp\left( \eta\, \frac{e_i}{e_i^0} \right), \qquad "
        r"e_i = \sum_p \frac{g_{ip}^2}{\sqrt{S_{ip}}}, \qquad S_{ip} \leftarrow S_{ip} + g_{ip}^2"
    ),
    "forum": (
        r"d = \sum_i l_i h_i + v\, g_q, \qquad (l, v) = \operatorname{argmin} "
        r"\left\lVert \sum_i l_i h_i + v\, g_q \right\rVert^2 - v \rho \lVert g_q \rVert^2, \qquad "
        r"h_i = \frac{\nabla F_i}{\lVert \nabla F_i \rVert}"
    ),
    "go4align": (
        r"w_i = \operatorname{mean}_{j \in \text{group}(i)} v_j, \qquad v_i = p_i \frac{\sum_j L_j}{L_i}, \qquad "
        r"p_i \leftarrow \frac{p_i e^{-\eta L_i}}{\sum_j p_j e^{-\eta L_j}}"
    ),
    "graddrop": (
        r"d_p = \sum_i \left[ \operatorname{sign}(g_{ip}) = s_p \right] g_{ip}, \qquad "
        r"\Pr(s_p = +1) = \tfrac{1}{2} \left( 1 + \frac{\sum_i g_{ip}}{\sum_i |g_{ip}|} \right)"
    ),
    "gradnorm": (
        r"\min_w \sum_i \left| w_i \lVert g_i \rVert - \bar{G}\, r_i^\alpha \right|, \qquad "
        r"\bar{G} = \tfrac{1}{K} \sum_j w_j \lVert g_j \rVert, \qquad "
        r"r_i = \frac{L_i / L_i(0)}{\tfrac{1}{K} \sum_j L_j / L_j(0)}"
    ),
    "gradvac": (
        r"g_i' \leftarrow g_i' + \frac{\lVert g_i' \rVert \left( \rho_{ij} \sqrt{1 - \varphi^2} "
        r"- \varphi \sqrt{1 - \rho_{ij}^2} \right)}{\lVert g_j \rVert \sqrt{1 - \rho_{ij}^2}}\, g_j "
        r"\ \text{ whenever } \varphi = \cos(g_i', g_j) < \rho_{ij}, \qquad d = \sum_i g_i'"
    ),
    "imgrad": (
        r"d = \frac{1}{1 + c^2} \left( g_0 + c\, \lVert g_0 \rVert \frac{g_w}{\lVert g_w \rVert} \right), \qquad "
        r"w = \operatorname{argmin}_w\; (1.5 - q) \langle g_w, g_0 \rangle "
        r"+ q\, c\, \lVert g_0 \rVert \lVert g_w \rVert, \qquad q = \cos(g_0, g_m)"
    ),
    "imtl": (
        r"d = \sum_i a_i e^{s_i} g_i, \quad \sum_i a_i = 1, \quad "
        r"\left\langle d, \tfrac{g_i}{\lVert g_i \rVert} \right\rangle \ \text{equal for all } i, \qquad "
        r"\min_s \sum_i \left( e^{s_i} L_i - s_i \right)"
    ),
    "krum": (
        r"d = g_{i^*}, \qquad i^* = \operatorname{argmin}_i \sum_{j \in N(i)} \lVert g_i - g_j \rVert^2, \qquad "
        r"N(i) \ \text{the } K - f - 2 \text{ nearest}"
    ),
    "layerwise": (
        r"d = \left( A(J_1), A(J_2), \ldots \right), \qquad J = \left( J_1 \mid J_2 \mid \cdots \right) "
        r"\ \text{cut by layers}"
    ),
    "m-config": (
        r"d = \frac{d_t}{\sqrt{s_t / (1 - \beta_2^t)} + \varepsilon}, \qquad "
        r"d_t = \operatorname{ConFIG}\left( \frac{m_1}{1 - \beta_1^{t_1}}, \ldots, "
        r"\frac{m_K}{1 - \beta_1^{t_K}} \right)"
    ),
    "moco": (
        r"d = Y^\top w, \qquad y_i \leftarrow y_i - \beta_t (y_i - h_i), \qquad "
        r"w \leftarrow \Pi_\Delta\left( w - \gamma_t (Y Y^\top + \rho I)\, w \right)"
    ),
    "modo": (
        r"d = J_3^\top w, \qquad w \leftarrow \Pi_\Delta\left( w - \gamma (J_1 J_2^\top w + \rho w) \right), \qquad "
        r"J_1, J_2, J_3 \ \text{of independent batches}"
    ),
    "moml": (
        r"w \leftarrow w - \text{Adam}(a), \qquad a_i = -\sum_j m_j \langle g_i, \nabla F_j \rangle, "
        r"\qquad m = \operatorname{argmin}_{m \ge 0,\ \sum_j m_j = 1} "
        r"\Bigl\lVert \sum_j m_j \nabla_w F_j \Bigr\rVert^2"
    ),
    "pbi": (
        r"\min_\theta\; d_1 + \vartheta\, d_2, \qquad d_1 = \hat{r}^\top x, \quad "
        r"d_2 = \lVert x - d_1 \hat{r} \rVert, \quad x = L - z"
    ),
    "pivrg": (
        r"d = J^\top w, \qquad w > 0 \ \text{solving} \quad G w = \sqrt{p / w}, \qquad "
        r"p = K \operatorname{softmax}(s / T)"
    ),
    "random": (
        r"w \sim \operatorname{Dirichlet}(1, \ldots, 1) \ \text{ in every step, or another law with } "
        r"\mathbb{E}[w_i] = 1/K"
    ),
    "row-normalised": (
        r"d = c\, A\left( \frac{g_1}{\lVert g_1 \rVert}, \ldots, \frac{g_K}{\lVert g_K \rVert} \right), \qquad "
        r"c = \tfrac{1}{K} \sum_i \lVert g_i \rVert \ \text{(or as asked)}"
    ),
    "sdmgrad": (
        r"d = \frac{J^\top w + \lambda g_0}{1 + \lambda}, \qquad "
        r"w = \operatorname{argmin}_{w \ge 0,\ \sum_i w_i = 1} \tfrac{1}{2} \lVert J^\top w + \lambda g_0 \rVert^2"
    ),
    "task-weighted": (r"d = A(u_1 g_1, \ldots, u_K g_K), \qquad u_i > 0"),
    "trimmed-mean": (
        r"d_p = \operatorname{mean}\left( g_{(t+1)p}, \ldots, g_{(K-t)p} \right), \qquad "
        r"g_{(1)p} \le \cdots \le g_{(K)p} \ \text{ sorted in every coordinate}"
    ),
    "wpcgrad": (
        r"g_i' \leftarrow g_i' - \frac{\langle g_i', g_j' \rangle}{\lVert g_j' \rVert^2}\, g_j' "
        r"\ \text{ if } \langle g_i', g_j' \rangle < 0, \ j \text{ drawn before } i, \qquad d = \sum_i g_i'"
    ),
    "layer-conflict": (
        r"\text{conflict} \Longleftrightarrow \min_{l,\, i \ne j} \cos(g_i^l, g_j^l) < -\text{threshold}, "
        r"\qquad g_i^l \ \text{the part of } g_i \text{ in layer } l"
    ),
    "task-arithmetic": (r"\theta = \theta_0 + \lambda \sum_t \tau_t, \qquad \tau_t = \theta_t - \theta_0"),
    "weight-average": (r"\theta = \tfrac{1}{T} \sum_t \theta_t"),
    "ties": (
        r"\theta = \theta_0 + \lambda \operatorname{mean}\{ \hat\tau_t : \operatorname{sign} \hat\tau_t = \gamma \}, "
        r"\qquad \gamma = \operatorname{sign} \sum_t \hat\tau_t, \qquad \hat\tau_t \ \text{the largest of } \tau_t"
    ),
    "doge": (
        r"\theta = \theta_0 + \sum_t \lambda_t (\tau_t + \Delta), \qquad "
        r"\lambda_t = \frac{\eta}{\lVert \tau_t \rVert_F}, "
        r"\qquad \Delta \leftarrow \Delta - \alpha\, (I - B B^\top) \nabla L(\Delta)"
    ),
    "adamerging": (r"\theta = \theta_0 + \sum_t c_t \tau_t, \qquad c \ \text{minimises the objective over } [0, 1]^T"),
    "ls-sweep": (r"\min_\theta\ \sum_i p_i L_i(\theta) \quad \text{for every } p \text{ of a grid}"),
    "stch-sweep": (
        r"\min_\theta\ \mu \log \sum_i \exp\left( p_i L_i(\theta) / \mu \right) "
        r"\quad \text{for every } p \text{ of a grid}"
    ),
    "gradops-sweep": (
        r"\theta_\alpha \ \text{for every } \alpha \text{ of a grid}, \qquad "
        r"p \mapsto \operatorname{argmin}_\alpha \sum_i p_i L_i(\theta_\alpha)"
    ),
    "pareto-mtl": (
        r"\min_\theta\ L(\theta) \quad \text{subject to} \quad (u_j - u_k)^\top L(\theta) \le 0 \ \text{for all } j"
    ),
    "epo": (r"p_1 L_1(\theta) = \cdots = p_K L_K(\theta), \qquad \theta \ \text{Pareto-optimal}"),
    "pamal": (
        r"\theta(a) = \sum_k a_k \theta_k, \qquad "
        r"\min_{\theta_1, \ldots, \theta_K} \mathbb{E}_{a \sim \mathrm{Dir}(p)} \sum_i a_i L_i(\theta(a))"
    ),
    "cosmos-explorer": (
        r"\min_{\theta, V} \mathbb{E}_{a \sim \mathrm{Dir}(p)} \left[ a^\top L - \lambda \cos(a, L) \right], \qquad "
        r"\text{first bias: } b + V a"
    ),
    "phn": (
        r"\theta(a) = \theta_0 + \tfrac{1}{n} W h(a), \quad h(a) \in \mathbb{R}^n, \qquad "
        r"\min_{W, h} \mathbb{E}_{a \sim \mathrm{Dir}(p)} \sum_i a_i L_i(\theta(a))"
    ),
}
"""Slug -> LaTeX, without dollars."""

TITLES: dict[str, str] = {
    "https://arxiv.org/abs/1703.02757": "Krum (Blanchard et al. 2017)",
    "https://arxiv.org/abs/1705.07115": "Multi-task learning using uncertainty to weigh losses",
    "https://arxiv.org/abs/1706.08840": "Gradient episodic memory for continual learning",
    "https://arxiv.org/abs/1711.02257": "GradNorm: gradient normalization for adaptive loss balancing",
    "https://arxiv.org/abs/1803.01498": "Yin et al. 2018",
    "https://arxiv.org/abs/1803.10704": "End-to-end multi-task learning with attention",
    "https://arxiv.org/abs/1810.04650": "Multi-task learning as multi-objective optimization",
    "https://arxiv.org/abs/1904.08492": "MultiNet++: multi-stream feature aggregation and geometric loss strategy",
    "https://arxiv.org/abs/1912.12854": "Pareto multi-task learning",
    "https://arxiv.org/abs/2001.06782": "Gradient surgery for multi-task learning",
    "https://arxiv.org/abs/2010.04104": "Learning the Pareto front with hypernetworks",
    "https://arxiv.org/abs/2010.05874": "Gradient vaccine (GradVac)",
    "https://arxiv.org/abs/2010.06808": "Just pick a sign: gradient sign dropout (GradDrop)",
    "https://arxiv.org/abs/2102.07121": "Multi-objective meta learning (Ye et al. 2021)",
    "https://arxiv.org/abs/2103.13392": "COSMOS (Ruchte and Grabocka 2021)",
    "https://arxiv.org/abs/2110.14048": "Conflict-averse gradient descent for multi-task learning",
    "https://arxiv.org/abs/2111.10603": "Reasonable effectiveness of random weighting",
    "https://arxiv.org/abs/2202.01017": "Multi-task learning as a bargaining game",
    "https://arxiv.org/abs/2202.03091": "Auto-Lambda: disentangling dynamic task relationships",
    "https://arxiv.org/abs/2210.09759": "Pareto manifold learning (PaMaL)",
    "https://arxiv.org/abs/2210.12624": "MoCo (Fernando et al. 2023)",
    "https://arxiv.org/abs/2212.04089": "Editing models with task arithmetic",
    "https://arxiv.org/abs/2305.18409": "SDMGrad (Xiao, Ban and Ji 2023)",
    "https://arxiv.org/abs/2305.19000": "Independent component alignment for multi-task learning",
    "https://arxiv.org/abs/2305.20057": "MoDo (Chen, Fernando, Ying and Chen 2023)",
    "https://arxiv.org/abs/2306.01708": "TIES-merging: resolving interference when merging models",
    "https://arxiv.org/abs/2306.03792": "FAMO: fast adaptive multitask optimization",
    "https://arxiv.org/abs/2306.09373": "Yuan and Zhang 2023",
    "https://arxiv.org/abs/2308.12029": "Dual-balancing for multi-task learning (DB-MTL)",
    "https://arxiv.org/abs/2310.02575": "AdaMerging: adaptive model merging for multi-task learning",
    "https://arxiv.org/abs/2401.09257": "FORUM: first-order multi-gradient bi-level optimisation",
    "https://arxiv.org/abs/2402.02009": "Robust multi-task learning with excess risks (He et al. 2024)",
    "https://arxiv.org/abs/2402.15638": "Fair resource allocation in multi-task learning",
    "https://arxiv.org/abs/2402.19078": "Smooth Tchebycheff scalarization for multi-objective optimization",
    "https://arxiv.org/abs/2404.07155": "GO4Align: group optimization for multi-task alignment",
    "https://arxiv.org/abs/2406.16232": "Jacobian descent for multi-objective optimization",
    "https://arxiv.org/abs/2408.11104": "ConFIG: towards conflict-free training of physics informed neural networks",
    "https://arxiv.org/abs/2409.01793": "WPCGrad (Bohn et al. 2024)",
    "https://arxiv.org/abs/2501.01230": "Modeling multi-task model merging as adaptive projective gradient descent",
    "https://arxiv.org/abs/2502.00217": "ConicGrad (Hassanpour et al. 2025)",
    "https://arxiv.org/abs/2502.08585": "Bilevel loss balancing for multi-task learning (LDC-MTL)",
    "https://arxiv.org/abs/2503.03438": "Gradient deconfliction via orthogonal projections onto subspaces (GradOPS)",
    "https://arxiv.org/abs/2503.04046": "Symmetry teleportation for multi-task learning (COST)",
    "https://arxiv.org/abs/2503.08006": "IMGrad (Zhou et al. 2025)",
    "https://arxiv.org/abs/2605.30452": "Hu, Ho and Yu 2026",
    "https://arxiv.org/abs/2606.29521": "Not all objectives are born equal: priority-constrained descent",
    "https://doi.org/10.1016/j.crma.2012.03.014": "Multiple-gradient descent algorithm (Desideri 2012)",
    "https://doi.org/10.1109/TEVC.2007.892759": "MOEA/D (Zhang and Li 2007)",
    "https://github.com/jianke0604/MTLlib": "Revisiting fairness in multitask learning (code)",
    "https://openreview.net/forum?id=IMPnRXEWpvr": "Towards impartial multi-task learning",
    "https://openreview.net/forum?id=ScwfQ7hdwyP": "Stochastic multi-objective gradient manipulation (CR-MOGM)",
    "https://openreview.net/forum?id=ivwZO-HnzG_": "Recon (Shi et al. 2023)",
    "https://proceedings.mlr.press/v119/mahapatra20a.html": "Multi-task learning with user preferences (EPO)",
}
"""Address of a paper -> its title."""
