"""Security drills: attackers, defenders and an umpire on a real grid, with a stopwatch."""
