# %% [markdown]
# # A damped oscillator
#
# Its equation is solved; the curve is sampled with noise, filtered, fitted and analysed.
# %%
import numpy as np
from scipy import integrate, interpolate, linalg, optimize, signal, sparse, stats
from scipy.sparse import linalg as sparse_linalg
# %%
def motion(t, state, damping=0.3, stiffness=4.0):
    position, speed = state
    return [speed, -damping * speed - stiffness * position]

solution = integrate.solve_ivp(motion, (0, 10), [1.0, 0.0], t_eval=np.linspace(0, 10, 101), rtol=1e-6)
print(solution.success, solution.y.shape, np.round(solution.y[0, :3], 4))
# %%
rng = np.random.default_rng(1)
measured = solution.y[0] + rng.normal(0, 0.05, 101)
def model(t, amplitude, damping, frequency):
    return amplitude * np.exp(-damping * t / 2) * np.cos(frequency * t)

found, covariance = optimize.curve_fit(model, solution.t, measured, p0=[1, 0.2, 2])
np.round(found, 2), covariance.shape
# %%
result = optimize.minimize(lambda x: (x[0] - 1) ** 2 + (x[1] + 2) ** 2, [0, 0])
print(result.success, np.round(result.x, 3) + 0.0)
# %%
optimize.brentq(lambda t: model(t, 1, 0.3, 2), 0, 1.5)
# %%
b, a = signal.butter(3, 0.2)
smooth = signal.filtfilt(b, a, measured)
peaks, _ = signal.find_peaks(smooth, prominence=0.1)
peaks, bool(np.std(smooth - solution.y[0]) < np.std(measured - solution.y[0]))
# %%
spline = interpolate.CubicSpline(solution.t, solution.y[0])
round(float(spline(0.55)), 4), round(float(spline.integrate(0, 2)), 4)
# %%
matrix = np.array([[4.0, 1.0], [2.0, 3.0]])
factors = linalg.lu_factor(matrix)
linalg.lu_solve(factors, [1, 2]).round(3), linalg.det(matrix).round(6), np.sort(linalg.eigvals(matrix).real)
# %%
try:
    linalg.inv(np.zeros((2, 2)))
except linalg.LinAlgError as error:
    print(type(error).__name__, "singular" in str(error).lower())
# %%
chain = sparse.diags([-1.0, 2.0, -1.0], [-1, 0, 1], shape=(50, 50), format="csc")
bent = sparse_linalg.spsolve(chain, np.ones(50))
chain.nnz, chain.shape, bent.max().round(3)
# %%
test = stats.ttest_1samp(measured - solution.y[0], 0)
round(float(test.pvalue), 3), stats.norm(0, 2).cdf(1).round(4)
