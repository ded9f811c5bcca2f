"""Every row of the table: by value, by its reductions, by symmetry, by finite differences; a loop over the table."""

import math
from dataclasses import replace

import pytest
import torch

from mallowspo.mallows import pairwise_probability
from mallowspo.methods import CHOICES, METHODS
from mallowspo.objectives import LINKS, Objective, PairScores, log_ratio_margin
from mallowspo.objectives.links import cauchy, mallows_phi, ranked_choice, robust

F64 = torch.float64
MARGIN = torch.tensor([-30.0, -4.0, -0.5, 0.0, 0.5, 4.0, 30.0], dtype=F64)
WEIGHT = torch.tensor([0.4, 0.8, 1.0, 1.2, 1.6, 0.1, 2.0], dtype=F64)
#: Base method of each Mallows twin.
BASE = {
    "mallows_theta": "dpo",
    "mallows_ipo": "ipo",
    "mallows_simpo": "simpo",
    "mallows_slic": "slic",
    "mallows_rainbowpo": "rainbowpo",
    "mallows_lb": "lb_dpo",
}
#: Methods whose loss is -log of a probability g with g(s) + g(-s) = 1 where no target margin or SFT term is added.
PROBABILITIES = {"dpo", "cauchy_dpo", "mallows_theta", "mallows_phi", "epsilon_dpo"}


def scores(margin=MARGIN, weight=None, dtype=F64, **fields):
    """Pairs with the given log-ratio margin: chosen -20 + margin, rejected -25, reference -20 and -25."""
    margin = torch.as_tensor(margin, dtype=dtype)
    if weight is None:
        weight = WEIGHT if margin.shape == WEIGHT.shape else 1.0
    ones = torch.ones_like(margin)
    pairs = PairScores(
        chosen_logp=-20 + margin,
        rejected_logp=-25 * ones,
        reference_chosen=-20 * ones,
        reference_rejected=-25 * ones,
        chosen_tokens=10 * ones,
        rejected_tokens=5 * ones,
        weight=torch.as_tensor(weight, dtype=dtype).expand_as(margin),
        chosen_confidence=-0.5 * ones,
        rejected_confidence=-0.25 * ones,
        prompt_perplexity=ones,
        prompt_hidden=torch.ones(*margin.shape, 3, dtype=dtype) * 0.1,
        interpolated_plus=5.1 + margin,
        interpolated_minus=4.9 + margin,
    )
    return replace(pairs, **fields)


def objective(name, beta=0.1, options=None, **keywords):
    return Objective(name, beta, options, hidden_size=3, **keywords).to(F64)


def losses(name, pairs=None, beta=0.1, options=None, **keywords):
    return objective(name, beta, options, **keywords)(pairs if pairs is not None else scores())


def one(name, pairs, beta, options=None):
    """The loss of the first pair."""
    return losses(name, pairs, beta, options).loss[0].item()


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


def test_margin_worked_by_hand():
    """(-10 + 12) - (-20 + 15) = 7."""
    parts = {"chosen_logp": -10.0, "rejected_logp": -20.0, "reference_chosen": -12.0, "reference_rejected": -15.0}
    assert log_ratio_margin(PairScores(**{key: torch.tensor([value]) for key, value in parts.items()})).tolist() == [7]


class TestWorkedExamples:
    """chosen: log pi -18 over 10 tokens, rejected: -25 over 5; reference: -20, -25. Margin 2, a token 0.2; weight 2."""

    pairs = scores([2.0], 2.0)

    def test_dpo(self):
        assert one("dpo", self.pairs, 0.1) == pytest.approx(-log_sigmoid(0.2), abs=1e-15)

    def test_cdpo(self):
        expected = -0.9 * log_sigmoid(0.2) - 0.1 * log_sigmoid(-0.2)
        assert one("cdpo", self.pairs, 0.1) == pytest.approx(expected, abs=1e-15)

    def test_robust_dpo(self):
        expected = (-0.9 * log_sigmoid(0.2) + 0.1 * log_sigmoid(-0.2)) / 0.8
        assert one("robust_dpo", self.pairs, 0.1) == pytest.approx(expected, abs=1e-15)

    def test_ipo(self):
        assert one("ipo", self.pairs, 0.1) == pytest.approx((0.2 - 5) ** 2, abs=1e-12)
        assert one("ipo", self.pairs, 0.1, {"scaling": "beta"}) == pytest.approx((0.02 - 0.5) ** 2, abs=1e-15)
        assert one("ipo", self.pairs, 0.1, {"length": "sum"}) == pytest.approx((2 - 5) ** 2, abs=1e-12)

    def test_slic(self):
        assert one("slic", self.pairs, 0.1) == pytest.approx(0.8)
        assert one("slic", self.pairs, 0.1, {"sft": 0.5}) == pytest.approx(0.8 + 9)
        assert one("slic", self.pairs, 1.0) == 0

    def test_cauchy_and_exponential(self):
        assert one("cauchy_dpo", self.pairs, 0.5) == pytest.approx(-math.log(0.75))
        assert one("exponential_dpo", self.pairs, 0.5) == pytest.approx(math.exp(-1))

    def test_simpo(self):
        """Per token -1.8 and -5: 3.2 less 0.3."""
        assert one("simpo", self.pairs, 2.0) == pytest.approx(-log_sigmoid(2 * 2.9), abs=1e-15)

    def test_cpo(self):
        assert one("cpo", self.pairs, 0.1) == pytest.approx(-log_sigmoid(0.7) + 18, abs=1e-12)

    def test_orpo(self):
        odds = [math.exp(x) / (1 - math.exp(x)) for x in (-1.8, -5.0)]
        expected = 1.8 - 0.1 * log_sigmoid(math.log(odds[0] / odds[1]))
        assert one("orpo", self.pairs, 0.1) == pytest.approx(expected, abs=1e-12)

    def test_rdpo(self):
        assert one("rdpo", self.pairs, 0.1, {"length_coefficient": 0.02}) == pytest.approx(-log_sigmoid(0.2 + 0.1))

    def test_rainbowpo(self):
        """3.2 - 0.25 (-2 + 5) - 0.75 * 0.1."""
        assert one("rainbowpo", self.pairs, 2.0) == pytest.approx(-log_sigmoid(2 * (3.2 - 0.75 - 0.075)), abs=1e-15)

    def test_beta_dpo(self):
        """One pair: running mean 0.1 * 2, beta 0.1 (1 + 0.6 (2 - 0.2)); as the published code from its zeros."""
        assert one("beta_dpo", self.pairs, 0.1) == pytest.approx(-log_sigmoid(0.1 * 2.08 * 2), abs=1e-12)

    def test_epsilon_dpo(self):
        """The difference rises from 6.9 through 7 to 7.1: beta is divided by 1.01; where it falls, by 0.99."""
        assert one("epsilon_dpo", self.pairs, 0.1) == pytest.approx(-log_sigmoid(0.2 / 1.01), abs=1e-12)
        falls = replace(
            self.pairs,
            interpolated_plus=self.pairs.interpolated_minus,
            interpolated_minus=self.pairs.interpolated_plus,
        )
        assert one("epsilon_dpo", falls, 0.1) == pytest.approx(-log_sigmoid(0.2 / 0.99), abs=1e-12)

    def test_alpha_dpo(self):
        """Two pairs with per-token gaps 0.2 and 0.6: mean 0.04, deviation 0.1 * 0.28284 after the first batch."""
        deviation = 0.1 * math.sqrt(2) * 0.2
        z = [(gap - 0.04) / deviation for gap in (0.2, 0.6)]
        expected = [-log_sigmoid(2 * (part - 0.4 - 0.2 * each)) for part, each in zip((3.2, 3.6), z, strict=True)]
        assert losses("alpha_dpo", scores([2.0, 6.0]), 2.0).loss.tolist() == pytest.approx(expected, abs=1e-9)

    def test_wpo(self):
        assert one("wpo", self.pairs, 0.1) == pytest.approx(-math.exp(-0.75) * log_sigmoid(0.2), abs=1e-15)
        sure = replace(self.pairs, chosen_confidence=torch.ones(1, dtype=F64))
        assert one("wpo", sure, 0.1) == pytest.approx(-log_sigmoid(0.2), abs=1e-15)

    def test_lb_dpo(self):
        perplexed = replace(self.pairs, prompt_perplexity=torch.tensor([1.5], dtype=F64))
        found = objective("lb_dpo")
        assert found(perplexed).loss.item() == pytest.approx(-log_sigmoid(0.3), abs=1e-15)
        with torch.no_grad():
            found.adaptation.log_scale += math.log(2)
            found.adaptation.direction += 1.0
        factor = 2 * (1 + 0.5 * math.tanh(0.3))
        expected = -log_sigmoid(0.3 * factor) + math.log(factor) ** 2
        assert found(perplexed).loss.item() == pytest.approx(expected, abs=1e-12)

    def test_mallows_rows(self):
        assert one("mallows_theta", self.pairs, 0.1) == pytest.approx(-log_sigmoid(0.4), abs=1e-15)
        assert one("mallows_ipo", self.pairs, 0.1) == pytest.approx((0.4 - 5) ** 2, abs=1e-12)
        assert one("mallows_simpo", self.pairs, 2.0) == pytest.approx(-log_sigmoid(4 * 2.9), abs=1e-15)
        assert one("mallows_slic", self.pairs, 0.1) == pytest.approx(0.6)
        assert one("mallows_rainbowpo", self.pairs, 2.0) == pytest.approx(-log_sigmoid(4 * 2.375), abs=1e-15)
        assert one("mallows_lb", self.pairs, 0.1) == pytest.approx(-log_sigmoid(0.4), abs=1e-15)

    def test_mallows_phi(self):
        """Kendall's probability at a gap of 2 with q = phi^2 = exp(-2)."""
        q = math.exp(-2)
        expected = 3 / (1 - q**3) - 2 / (1 - q**2)
        assert math.exp(-one("mallows_phi", self.pairs, 1.0)) == pytest.approx(expected, abs=1e-14)
        assert math.exp(-one("mallows_phi", self.pairs, 1.0, {"exponent": 1})) == pytest.approx(
            3 / (1 - math.exp(-3)) - 2 / (1 - math.exp(-2)), abs=1e-14
        )

    def test_rcpo(self):
        """phi = exp(-1): P(chosen) = phi^rank / (1 + phi) with the rank smoothed to sigmoid(-0.2)."""
        expected = math.exp(log_sigmoid(-0.2)) + math.log(1 + math.exp(-1))
        assert one("rcpo", self.pairs, 0.1) == pytest.approx(expected, abs=1e-12)
        limits = torch.exp(-ranked_choice(torch.tensor([-50.0, 50.0], dtype=F64), torch.tensor(2.0, dtype=F64)))
        phi = math.exp(-1)
        assert limits.tolist() == pytest.approx([phi / (1 + phi), 1 / (1 + phi)])


class TestReductions:
    @pytest.mark.parametrize("name", BASE)
    def test_weight_one_is_the_base_method_to_the_bit(self, name):
        found = []
        for method in (name, BASE[name]):
            leaf = MARGIN.clone().requires_grad_()
            loss = losses(method, scores(leaf, 1.0)).loss
            loss.sum().backward()
            found.append((loss, leaf.grad))
        assert torch.equal(found[0][0], found[1][0])
        assert torch.equal(found[0][1], found[1][1])

    def test_dispersion_exp_minus_half_is_dpo(self):
        """phi = e^(-1/2) everywhere is w = -2 log phi = 1."""
        phi = torch.full((7,), math.exp(-0.5), dtype=F64)
        theta = losses("mallows_theta", scores(weight=-2 * torch.log(phi))).loss
        assert torch.equal(theta, losses("dpo").loss)

    def test_constant_dispersion_is_dpo_with_another_beta(self):
        assert torch.allclose(
            losses("mallows_theta", scores(weight=3.0)).loss, losses("dpo", beta=0.3).loss, atol=1e-15
        )

    def test_no_label_smoothing_is_dpo(self):
        for name in ("cdpo", "robust_dpo"):
            assert torch.allclose(losses(name, options={"label_smoothing": 0.0}).loss, losses("dpo").loss, atol=1e-15)

    def test_robust_loss_is_unbiased_under_flipped_labels(self):
        s, one_ = MARGIN, torch.ones_like(MARGIN)
        mixed = 0.8 * robust(s, one_, label_smoothing=0.2) + 0.2 * robust(-s, one_, label_smoothing=0.2)
        assert torch.allclose(mixed, LINKS["logistic"](s, one_), atol=1e-12)

    def test_rainbowpo_without_reference_share_is_simpo(self):
        mixed = losses("rainbowpo", options={"mixing": 0.0, "home_advantage": 0.3}, beta=2.0).loss
        assert torch.equal(mixed, losses("simpo", beta=2.0).loss)

    def test_equal_lengths_make_rdpo_dpo(self):
        pairs = scores(chosen_tokens=torch.full((7,), 5.0, dtype=F64))
        assert torch.equal(losses("rdpo", pairs).loss, losses("dpo", pairs).loss)

    def test_beta_dpo_without_sensitivity_or_drops_is_dpo(self):
        found = losses("beta_dpo", options={"sensitivity": 0.0, "dropped": 0.0})
        assert torch.allclose(found.loss, losses("dpo").loss, atol=1e-15)

    def test_alpha_dpo_without_alpha_is_simpo(self):
        options = {"alpha": 0.0, "home_advantage": 0.3}
        assert torch.allclose(losses("alpha_dpo", options=options, beta=2.0).loss, losses("simpo", beta=2.0).loss)

    def test_epsilon_zero_is_dpo(self):
        assert torch.equal(losses("epsilon_dpo", options={"epsilon": 0.0}).loss, losses("dpo").loss)

    def test_theta_is_spearmans_probability(self):
        expected = -torch.log(pairwise_probability(0.1 * MARGIN, torch.exp(-WEIGHT / 2), distance="spearman"))
        assert torch.allclose(losses("mallows_theta").loss, expected, atol=1e-14)

    @pytest.mark.parametrize("exponent", [1, 2])
    def test_phi_without_smoothing_is_kendalls_probability(self, exponent):
        expected = -torch.log(pairwise_probability(0.1 * MARGIN, torch.exp(-WEIGHT / 2), exponent=exponent))
        found = losses("mallows_phi", options={"smoothing": "none", "exponent": exponent}).loss
        assert torch.allclose(found, expected, atol=1e-12)

    def test_weight_outside_scales_the_base_loss(self):
        for name in ("mallows_theta", "mallows_slic", "mallows_phi"):
            outside = losses(name, outside=True)
            assert torch.allclose(outside.loss, WEIGHT * losses(name, scores(weight=1.0)).loss, atol=1e-14)
            assert torch.equal(outside.loss_weight, WEIGHT)


class TestSmoothings:
    W = torch.tensor([0.3, 1.0, 4.0, 40.0], dtype=F64)

    @pytest.mark.parametrize("smoothing", CHOICES["smoothing"])
    @pytest.mark.parametrize("exponent", [1, 2])
    def test_a_pair_and_its_swap_are_one_distribution(self, smoothing, exponent):
        s = torch.tensor([0.0, 1e-3, 0.3, 1.0, 2.5, 30.0], dtype=F64)[:, None]
        win, lose = (mallows_phi(sign * s, self.W, smoothing=smoothing, exponent=exponent) for sign in (1, -1))
        assert torch.allclose(torch.exp(-win) + torch.exp(-lose), torch.ones_like(win), atol=1e-12)
        assert torch.allclose(win[0], torch.full((4,), math.log(2), dtype=F64))

    @pytest.mark.parametrize("smoothing", ["cubic", "polynomial", "tanh", "sigmoid"])
    def test_it_rises_through_zero_and_is_exact_far_away(self, smoothing):
        s = torch.linspace(-3, 3, 1201, dtype=F64)
        for w in self.W:
            assert bool((mallows_phi(s, w, smoothing=smoothing).diff() < 0).all())
        far = torch.tensor([-6.0, 6.0], dtype=F64)[:, None]
        exact = mallows_phi(far, self.W[:2], smoothing="none")
        assert torch.allclose(mallows_phi(far, self.W[:2], smoothing=smoothing), exact, rtol=1e-6)

    @pytest.mark.parametrize(("smoothing", "orders"), [("cubic", 1), ("polynomial", 2)])
    def test_polynomials_meet_the_exact_link_at_their_edge(self, smoothing, orders):
        for width in (0.25, 1.0, 2.0):
            sides = []
            for where in (width - 1e-9, width + 1e-9):
                s = torch.full_like(self.W[:3], where).requires_grad_()
                value = mallows_phi(s, self.W[:3], smoothing=smoothing, smoothing_width=width)
                derivatives = [value]
                for _ in range(orders):
                    derivatives.append(torch.autograd.grad(derivatives[-1].sum(), s, create_graph=True)[0])
                sides.append(torch.stack(derivatives).detach())
            assert torch.allclose(sides[0], sides[1], atol=1e-5)

    def test_slopes_at_zero(self):
        """tanh: steepness (g(0+) - 1/2); sigmoid: half of it."""
        jump = torch.exp(-mallows_phi(torch.tensor(1e-12, dtype=F64), self.W, smoothing="none")) - 0.5
        for smoothing, factor in (("tanh", 7.0), ("sigmoid", 3.5)):
            s = torch.zeros_like(self.W).requires_grad_()  # exactly 0: where every training starts
            torch.exp(-mallows_phi(s, self.W, smoothing=smoothing, steepness=7.0)).sum().backward()
            assert torch.allclose(s.grad, factor * jump, rtol=1e-5)

    def test_a_steeper_one_comes_closer(self):
        s = torch.tensor([0.2, 0.5, 0.9], dtype=F64)
        exact = mallows_phi(s, self.W[1], smoothing="none")
        gaps = [(mallows_phi(s, self.W[1], smoothing="tanh", steepness=k) - exact).abs().max() for k in (5, 10, 50)]
        assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 1e-8

    def test_wrong_options(self):
        for wrong in ({"smoothing": "spline"}, {"smoothing_width": 0.0}, {"steepness": -1.0}):
            with pytest.raises(ValueError, match="mallows_phi"):
                mallows_phi(MARGIN, WEIGHT, **wrong)


@pytest.mark.parametrize("name", METHODS)
class TestEveryRow:
    """Properties that each row of the table has; a new row is covered without a new test."""

    def test_its_parts_exist_and_it_says_where_it_comes_from(self, name):
        row = METHODS[name]
        assert row.link in LINKS and row.formula and row.source
        assert ("dispersion" in row.needs) == (row.weight == "dispersion")

    def test_it_needs_what_it_says_and_no_more(self, name):
        fields = {
            "reference": ("reference_chosen", "reference_rejected"),
            "dispersion": ("weight",),
            "lengths": ("chosen_tokens", "rejected_tokens"),
            "confidence": ("chosen_confidence", "rejected_confidence"),
            "prompt_perplexity": ("prompt_perplexity",),
            "prompt_hidden": ("prompt_hidden",),
            "reference_logits": ("interpolated_plus", "interpolated_minus"),
        }
        assert set(METHODS[name].needs) <= set(fields)
        others = {field: None for need in fields if need not in METHODS[name].needs for field in fields[need]}
        assert torch.isfinite(losses(name, scores(**others)).loss).all()
        for need in METHODS[name].needs:
            with pytest.raises(ValueError, match=fields[need][0]):
                losses(name, replace(scores(), **dict.fromkeys(fields[need])))

    def test_every_option_matters(self, name):
        others = {"length": "sum", "scaling": "beta", "smoothing": "tanh", "level": "instance"}
        trials = scores([0.1, 2.0, -3.0, 0.4])
        for option, default in METHODS[name].options.items():
            if (name, option) == ("orpo", "length"):
                continue  # ORPO's odds are per token always; its length says what the SFT term is
            options = {option: others[option] if isinstance(default, str) else default + 0.25}
            if option == "steepness":
                options["smoothing"] = "tanh"
            before = {"smoothing": options["smoothing"]} if option == "steepness" else {}
            found = [self._two_batches(name, chosen, trials) for chosen in (before, options)]
            assert not torch.equal(*found), option

    @staticmethod
    def _two_batches(name, options, pairs):
        """Losses of a batch after a first one has been remembered and the learned parts have moved."""
        found = objective(name, options=options)
        with torch.no_grad():
            for parameter in found.parameters():
                parameter += 0.3
        found(scores([5.0, -1.0, 0.5, 7.0]))
        found.after_step()
        return found(pairs).loss

    def test_the_order_of_pairs_does_not_matter(self, name):
        if METHODS[name].adaptive == "beta_dpo":
            pytest.skip("drops pairs by a draw")
        flipped = scores(MARGIN.flip(0), WEIGHT.flip(0))
        assert torch.allclose(losses(name).loss.flip(0), losses(name, flipped).loss, atol=1e-12)

    def test_a_pair_and_its_swap_are_one_distribution(self, name):
        if name not in PROBABILITIES:
            pytest.skip("no probability of its margin alone")
        pairs = scores(chosen_logp=MARGIN - 20, rejected_logp=torch.full_like(MARGIN, -20.0))
        level = {"interpolated_plus": MARGIN * 0, "interpolated_minus": MARGIN * 0}
        pairs = replace(pairs, reference_rejected=pairs.reference_chosen, **level)
        swapped = replace(pairs, chosen_logp=pairs.rejected_logp, rejected_logp=pairs.chosen_logp)
        win, lose = (torch.exp(-losses(name, each, beta=0.2).loss) for each in (pairs, swapped))
        assert torch.allclose(win + lose, torch.ones_like(win), atol=1e-12)

    def test_gradient_against_finite_differences(self, name):
        """Of the policy's log-probabilities; the adaptations' own statistics carry no gradient, so they are held."""
        chosen = torch.tensor([-60.0, -27.0, -20.3, -19.8, -17.0], dtype=F64, requires_grad=True)
        rejected = torch.tensor([-24.0, -26.0, -25.0, -30.0, -25.5], dtype=F64, requires_grad=True)
        found = objective(name, beta=0.2)
        if METHODS[name].adaptive in ("beta_dpo", "alpha_dpo", "epsilon_dpo"):
            held = found.adaptation(scores([-40.0, -6.0, -0.3, 5.2, 3.5]), found.beta)
            found.adaptation.forward = lambda pairs, beta: held
        fixed = scores(torch.zeros(5, dtype=F64), torch.tensor([0.5, 1.0, 1.5, 0.01, 2.0]))

        def total(chosen_logp, rejected_logp):
            return found(replace(fixed, chosen_logp=chosen_logp, rejected_logp=rejected_logp)).loss

        assert torch.autograd.gradcheck(total, (chosen, rejected), atol=1e-6)

    def test_a_likelier_chosen_side_never_costs_more(self, name):
        if name in ("ipo", "mallows_ipo", "cdpo", "robust_dpo", "beta_dpo", "alpha_dpo"):
            pytest.skip("has its minimum at a finite margin, or moves its target with the batch")
        margin = torch.linspace(-200, 15, 216, dtype=F64)
        for weight in (0.0, 0.2, 1.0, 3.0):
            assert bool((losses(name, scores(margin, weight)).loss.diff() <= 1e-12).all())

    def test_float32_stays_finite_in_the_corners(self, name):
        margin = torch.tensor([-500.0, -50.0, -1e-6, 0.0, 1e-6, 15.0, 19.99]).repeat(4).requires_grad_()
        weight = torch.tensor([0.0, 1e-4, 1.0, 20.0]).repeat_interleave(7)
        loss = Objective(name, 0.1, hidden_size=3)(scores(margin, weight, torch.float32)).loss
        loss.sum().backward()
        assert loss.dtype == torch.float32
        # 700 nats into the exponential loss times the largest weight still is a float32.
        assert bool(loss.isfinite().all()) and bool(margin.grad.isfinite().all())

    def test_independent_runs_do_not_see_each_other(self, name):
        """Two runs as a leading dimension give what each gives alone."""
        margins = torch.tensor([[0.5, -2.0, 3.0, 1.0], [4.0, 0.0, -1.0, 2.0]], dtype=F64)
        betas = torch.tensor([[0.1], [0.4]], dtype=F64)
        options = {"dropped": 0.0} if METHODS[name].adaptive == "beta_dpo" else None
        together = objective(name, betas, options, runs=(2,))
        found = [together(scores(margins)).loss, together(scores(margins + 1)).loss]
        for run in (0, 1):
            alone = objective(name, betas[run], options)
            for batch, moved in enumerate((margins[run], margins[run] + 1)):
                assert torch.allclose(alone(scores(moved)).loss, found[batch][run], atol=1e-12)


def test_sft_is_the_likelihood_of_the_chosen_response():
    pairs = scores(MARGIN)
    assert torch.equal(losses("sft", pairs).loss, -pairs.chosen_logp)
    assert torch.equal(
        losses("sft", replace(pairs, rejected_logp=pairs.rejected_logp - 9), beta=7.0).loss, -pairs.chosen_logp
    )


class TestAdaptations:
    def test_beta_dpo_drops_a_share_by_a_seeded_draw(self):
        pairs = scores(torch.linspace(-3, 3, 40))
        first, again, other = (losses("beta_dpo", pairs, seed=seed).loss_weight for seed in (1, 1, 2))
        assert torch.equal(first, again) and not torch.equal(first, other)
        assert int((first == 0).sum()) == 8
        assert first.unique().tolist() == pytest.approx([0, 40 / 32])

    def test_beta_dpo_drops_outliers_first(self):
        """After many ordinary batches a pair 50 deviations off is never kept."""
        ordinary = torch.linspace(-1, 1, 10)
        found = objective("beta_dpo")
        for _ in range(60):
            found(scores(ordinary))
        outlier = torch.cat([ordinary[:9], torch.tensor([40.0])])
        with torch.no_grad():
            assert [found(scores(outlier)).loss_weight[9].item() for _ in range(20)] == [0.0] * 20

    def test_epsilon_dpo_moves_beta_after_a_step(self):
        found = objective("epsilon_dpo")
        found(scores())
        found(scores())
        found.after_step()
        assert found(scores()).effective_beta[0].item() == pytest.approx(0.1 / 1.01 / 1.01)
        found.after_step()
        found.after_step()  # nothing seen since: nothing moves
        assert found.adaptation.scale.item() == pytest.approx(1 / 1.01**2)

    def test_a_look_without_gradient_leaves_no_trace(self):
        for name in ("beta_dpo", "epsilon_dpo", "alpha_dpo"):
            found = objective(name)
            before = {key: value.clone() for key, value in found.state_dict().items() if "extra" not in key}
            with torch.no_grad():
                found(scores())
            assert all(torch.equal(found.state_dict()[key], value) for key, value in before.items())

    def test_state_goes_through_a_checkpoint(self):
        for name in ("beta_dpo", "epsilon_dpo", "alpha_dpo", "lb_dpo"):
            found, resumed = objective(name), objective(name, seed=99)
            found(scores())
            found.after_step()
            resumed.load_state_dict(found.state_dict())
            assert torch.equal(found(scores()).loss, resumed(scores()).loss)

    @pytest.mark.parametrize(("penalty", "grows"), [(0.0, True), (1.0, False)])
    def test_a_learned_beta_diverges_without_its_penalty(self, penalty, grows):
        """On pairs that are ordered rightly a larger beta always costs less."""
        found = objective("lb_dpo", options={"penalty": penalty})
        optimizer = torch.optim.SGD(found.parameters(), lr=0.5)
        for _ in range(400):
            optimizer.zero_grad()
            found(scores([3.0, 4.0, 5.0])).loss.mean().backward()
            optimizer.step()
        factor = found(scores([3.0])).effective_beta.item() / 0.1
        assert factor > 10 if grows else 1 < factor < 1.5


def test_wrong_requests():
    with pytest.raises(ValueError, match="unknown method 'dop'"):
        Objective("dop", 0.1)
    with pytest.raises(ValueError, match="no option 'gamma'"):
        Objective("simpo", 0.1, {"gamma": 1.0})
    with pytest.raises(ValueError, match="above 0"):
        Objective("dpo", 0.0)
    with pytest.raises(ValueError, match="label_smoothing"):
        losses("robust_dpo", options={"label_smoothing": 0.5})


def test_cauchy_does_not_cancel():
    s = torch.tensor([-1e12, 1e12], dtype=F64)
    assert cauchy(s, torch.ones_like(s)).tolist() == pytest.approx(
        [math.log(math.pi * 1e12), 1 / (math.pi * 1e12)], rel=1e-3
    )
