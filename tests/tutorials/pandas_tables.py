# %% [markdown]
# # Temperatures
#
# A table is made, grouped and drawn.
# %%
import numpy as np
import pandas as pd
# %%
days = pd.date_range("2024-01-01", periods=60)
rng = np.random.default_rng(3)
table = pd.DataFrame({"day": days, "city": ["Oslo", "Rome"] * 30, "degrees": rng.normal(8, 5, 60).round(1)})
table.head()
# %%
table.dtypes
# %%
table.groupby("city")["degrees"].agg(["mean", "min", "max"]).round(2)
# %%
warm = table[table.degrees > 10]
print(len(warm), warm.degrees.median())
# %%
table.loc[table.degrees.idxmax(), ["day", "city"]]
# %%
wide = table.pivot_table(index=table.day.dt.month, columns="city", values="degrees")
wide.index.name = "month"
wide.round(1)
# %%
table.degrees.describe().round(2)
# %%
try:
    table["nothing"]
except KeyError as error:
    print("no column", error)
# %%
merged = table.merge(pd.DataFrame({"city": ["Oslo", "Rome"], "country": ["Norway", "Italy"]}), on="city")
merged.country.value_counts()
# %%
table.assign(f=lambda t: t.degrees * 9 / 5 + 32).tail(3)
