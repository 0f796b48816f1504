// What the recipes of docs/recipes.md share. The part of each between "recipe" and "end" is in that page.
#ifndef EPLB_TESTS_RECIPE_H
#define EPLB_TESTS_RECIPE_H

#include <string>
#include <vector>

#include "../dispatch_fixture.h"

/// The values of a view.
template <class T> std::vector<T> ids_of(eplb::view<T> view) { return {view.begin(), view.end()}; }

#endif
